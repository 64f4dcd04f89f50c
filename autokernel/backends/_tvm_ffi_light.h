// What kernel files use of tvm-ffi's C++ headers (TensorView, checks, a device guard, the export of functions), written
// over its C interface. nvcc reads every header three times (for the device, for the host, and the host's compiler
// again): these lines take the place of most of a small kernel's build. Names and meaning are tvm-ffi's. What is not
// here must not compile: the file is then compiled with tvm-ffi's own headers (_light_nvcc.py).
#pragma once
#include <cuda_runtime_api.h>
#include <tvm/ffi/c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <type_traits>
#include <utility>

#if TVM_FFI_VERSION_MAJOR != 0
#error "written for the C interface of tvm-ffi 0"
#endif

// Their own headers, as if read already.
#define TVM_FFI_ANY_H_
#define TVM_FFI_CONTAINER_SHAPE_H_
#define TVM_FFI_CONTAINER_TENSOR_H_
#define TVM_FFI_DTYPE_H_
#define TVM_FFI_ERROR_H_
#define TVM_FFI_EXTRA_CUDA_BASE_H_
#define TVM_FFI_EXTRA_CUDA_DEVICE_GUARD_H_
#define TVM_FFI_FUNCTION_DETAIL_H_
#define TVM_FFI_FUNCTION_H_
#define TVM_FFI_OBJECT_H_
#define TVM_FFI_TVM_FFI_H_

#define TVM_FFI_THROW(kind) ::tvm::ffi::detail::Thrower(#kind).stream()
#define TVM_FFI_CHECK(condition, kind) \
  if (__builtin_expect(!(condition), 0)) TVM_FFI_THROW(kind) << "Check failed: (" #condition ") is false: "
#define TVM_FFI_CHECK_OP_(x, op, y, kind) \
  if (__builtin_expect(!((x)op(y)), 0))   \
  TVM_FFI_THROW(kind) << "Check failed: " #x " " #op " " #y " (" << (x) << " vs. " << (y) << ") : "
#define TVM_FFI_CHECK_EQ(x, y, kind) TVM_FFI_CHECK_OP_(x, ==, y, kind)
#define TVM_FFI_CHECK_NE(x, y, kind) TVM_FFI_CHECK_OP_(x, !=, y, kind)
#define TVM_FFI_CHECK_LT(x, y, kind) TVM_FFI_CHECK_OP_(x, <, y, kind)
#define TVM_FFI_CHECK_LE(x, y, kind) TVM_FFI_CHECK_OP_(x, <=, y, kind)
#define TVM_FFI_CHECK_GT(x, y, kind) TVM_FFI_CHECK_OP_(x, >, y, kind)
#define TVM_FFI_CHECK_GE(x, y, kind) TVM_FFI_CHECK_OP_(x, >=, y, kind)
#define TVM_FFI_ICHECK(condition) TVM_FFI_CHECK(condition, InternalError)
#define TVM_FFI_ICHECK_EQ(x, y) TVM_FFI_CHECK_EQ(x, y, InternalError)
#define TVM_FFI_ICHECK_NE(x, y) TVM_FFI_CHECK_NE(x, y, InternalError)
#define TVM_FFI_ICHECK_LT(x, y) TVM_FFI_CHECK_LT(x, y, InternalError)
#define TVM_FFI_ICHECK_LE(x, y) TVM_FFI_CHECK_LE(x, y, InternalError)
#define TVM_FFI_ICHECK_GT(x, y) TVM_FFI_CHECK_GT(x, y, InternalError)
#define TVM_FFI_ICHECK_GE(x, y) TVM_FFI_CHECK_GE(x, y, InternalError)
#define TVM_FFI_CHECK_CUDA_ERROR(call)                                                                    \
  do {                                                                                                    \
    const cudaError_t tvm_ffi_found_ = (call);                                                            \
    if (tvm_ffi_found_ != cudaSuccess)                                                                    \
      TVM_FFI_THROW(RuntimeError) << "CUDA Runtime Error: " << cudaGetErrorName(tvm_ffi_found_) << " ("   \
                                  << static_cast<int>(tvm_ffi_found_) << "): " << cudaGetErrorString(tvm_ffi_found_); \
  } while (0)

inline bool operator==(const DLDataType& a, const DLDataType& b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}
inline bool operator!=(const DLDataType& a, const DLDataType& b) { return !(a == b); }

namespace tvm {
namespace ffi {
inline namespace light {  // no symbol may be taken for one of tvm-ffi's own library, which means another type by it

struct Error : std::exception {
  explicit Error(const char* kind) : kind(kind) {}
  const char* what() const noexcept override { return message; }

  const char* kind;
  char message[2048] = "";  // what is longer is cut
};

namespace detail {

// Collects what follows a check with <<, and throws it at the end of the statement.
class Thrower {
 public:
  explicit Thrower(const char* kind) : error_(kind) {}
  [[noreturn]] ~Thrower() noexcept(false) { throw error_; }
  Thrower& stream() { return *this; }

  Thrower& operator<<(const char* text) { return add("%s", text); }
  Thrower& operator<<(char letter) { return add("%c", letter); }
  template <typename T, typename = std::enable_if_t<std::is_arithmetic<T>::value>> Thrower& operator<<(T value) {
    if constexpr (std::is_floating_point<T>::value) return add("%g", static_cast<double>(value));
    else if constexpr (std::is_signed<T>::value) return add("%lld", static_cast<long long>(value));
    else return add("%llu", static_cast<unsigned long long>(value));
  }

 private:
  template <typename T> Thrower& add(const char* how, T value) {
    const size_t used = strlen(error_.message);
    snprintf(error_.message + used, sizeof(error_.message) - used, how, value);
    return *this;
  }

  Error error_;
};

}  // namespace detail

class ShapeView {
 public:
  ShapeView(const int64_t* data, size_t size) : data_(data), size_(size) {}
  const int64_t* data() const { return data_; }
  const int64_t* begin() const { return data_; }
  const int64_t* end() const { return data_ + size_; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int64_t operator[](size_t i) const { return data_[i]; }
  int64_t Product() const {
    int64_t product = 1;
    for (size_t i = 0; i < size_; ++i) product *= data_[i];
    return product;
  }

 private:
  const int64_t* data_;
  size_t size_;
};

class TensorView {
 public:
  TensorView(const DLTensor* tensor) : tensor_(*tensor) {}
  void* data_ptr() const { return tensor_.data; }
  DLDevice device() const { return tensor_.device; }
  DLDataType dtype() const { return tensor_.dtype; }
  int32_t ndim() const { return tensor_.ndim; }
  int32_t dim() const { return tensor_.ndim; }
  uint64_t byte_offset() const { return tensor_.byte_offset; }
  ShapeView shape() const { return {tensor_.shape, static_cast<size_t>(tensor_.ndim)}; }
  ShapeView sizes() const { return shape(); }
  ShapeView strides() const { return {tensor_.strides, static_cast<size_t>(tensor_.ndim)}; }
  int64_t numel() const { return shape().Product(); }
  int64_t size(int64_t i) const { return tensor_.shape[index(i)]; }
  int64_t stride(int64_t i) const { return tensor_.strides[index(i)]; }

 private:
  int64_t index(int64_t i) const {
    const int64_t at = i >= 0 ? i : tensor_.ndim + i;
    if (at < 0 || at >= tensor_.ndim)
      TVM_FFI_THROW(IndexError) << "Index " << i << " out of bounds for tensor with " << tensor_.ndim << " dimensions";
    return at;
  }

  DLTensor tensor_;
};

class CUDADeviceGuard {
 public:
  explicit CUDADeviceGuard(int device) : device_(device) {
    TVM_FFI_CHECK_CUDA_ERROR(cudaGetDevice(&before_));
    if (device_ != before_) TVM_FFI_CHECK_CUDA_ERROR(cudaSetDevice(device_));
  }
  CUDADeviceGuard(const CUDADeviceGuard&) = delete;
  ~CUDADeviceGuard() noexcept(false) {
    if (device_ != before_) TVM_FFI_CHECK_CUDA_ERROR(cudaSetDevice(before_));
  }

 private:
  int device_, before_;
};

namespace detail {

// An argument of a call from Python as what the function takes: tensors, numbers and truth values are all there is.
template <typename T> T argument(const TVMFFIAny& given, const char* function, size_t index) {
  if constexpr (std::is_same<T, TensorView>::value) {
    if (given.type_index == kTVMFFIDLTensorPtr) return TensorView(static_cast<DLTensor*>(given.v_ptr));
    if (given.type_index == kTVMFFITensor) return TensorView(TVMFFITensorGetDLTensorPtr(given.v_obj));
  } else {
    static_assert(std::is_arithmetic<T>::value, "a parameter that only tvm-ffi's own headers take");
    if (given.type_index == kTVMFFIInt || given.type_index == kTVMFFIBool) return static_cast<T>(given.v_int64);
    if (std::is_floating_point<T>::value && given.type_index == kTVMFFIFloat) return static_cast<T>(given.v_float64);
  }
  constexpr const char* expected = std::is_same<T, TensorView>::value   ? "DLTensor*"
                                   : std::is_same<T, bool>::value       ? "bool"
                                   : std::is_floating_point<T>::value ? "float" : "int";
  TVM_FFI_THROW(TypeError) << "Mismatched type on argument #" << index << " when calling: `" << function
                           << "`. Expected `" << expected << "`";
}

template <typename Result, typename... Parameters, size_t... I>
void call(Result (*function)(Parameters...), const char* name, const TVMFFIAny* given, int32_t count, TVMFFIAny* result,
          std::index_sequence<I...>) {
  if (count != static_cast<int32_t>(sizeof...(Parameters)))
    TVM_FFI_THROW(TypeError) << "Mismatched number of arguments when calling: `" << name << "`. Expected "
                             << sizeof...(Parameters) << " but got " << count << " arguments";
  if constexpr (std::is_void<Result>::value) {
    function(argument<std::decay_t<Parameters>>(given[I], name, I)...);
  } else {
    static_assert(std::is_arithmetic<Result>::value, "a result that only tvm-ffi's own headers give");
    const Result value = function(argument<std::decay_t<Parameters>>(given[I], name, I)...);
    if constexpr (std::is_floating_point<Result>::value) {
      result->type_index = kTVMFFIFloat;
      result->v_float64 = value;
    } else {
      result->type_index = std::is_same<Result, bool>::value ? kTVMFFIBool : kTVMFFIInt;
      result->v_int64 = static_cast<int64_t>(value);
    }
  }
}

template <typename Result, typename... Parameters>
int exported(Result (*function)(Parameters...), const char* name, const TVMFFIAny* given, int32_t count,
             TVMFFIAny* result) {
  try {
    call(function, name, given, count, result, std::index_sequence_for<Parameters...>());
    return 0;
  } catch (const Error& error) {
    TVMFFIErrorSetRaisedFromCStr(error.kind, error.message);
  } catch (const std::exception& error) {
    TVMFFIErrorSetRaisedFromCStr("InternalError", error.what());
  }
  return -1;
}

}  // namespace detail
}  // namespace light
}  // namespace ffi
}  // namespace tvm

#ifdef __CUDA_ARCH__  // nothing of it is the device's
#define TVM_FFI_DLL_EXPORT_TYPED_FUNC(name, function)
#else
#define TVM_FFI_DLL_EXPORT_TYPED_FUNC(name, function)                                                           \
  extern "C" TVM_FFI_DLL_EXPORT int __tvm_ffi_##name(void*, const TVMFFIAny* given, int32_t count, TVMFFIAny* to) { \
    return ::tvm::ffi::detail::exported(function, #name, given, count, to);                                      \
  }
#endif
