"""What a candidate file may look like: a quick reading of its syntax tree that refuses the obvious with a short reason.

This is advisory speed, not the wall. A reading of source can always be fooled; the processes, the fresh inputs and
the judge's clock are what a cheat must beat. Refusing here saves seconds and gives an honest author a clear word.
"""

from __future__ import annotations

import ast
import re

TORCH_ALLOCATION = frozenset(
    "empty empty_like empty_strided zeros zeros_like full full_like float32 float16 bfloat16 float64 int32 int64 uint8 "
    "int8 bool Tensor dtype device Size contiguous_format cuda version promote_types finfo".split()
)
# Methods of tensors that compute: a kernel in another language has no business calling them.
TENSOR_COMPUTE = frozenset(
    "matmul mm bmm addmm addmv mv dot einsum softmax log_softmax exp exp2 log log2 sum mean var std norm rsqrt sqrt "
    "pow square sigmoid tanh relu silu gelu cumsum prod amax amin argmax logsumexp gather scatter scatter_add "
    "index_add baddbmm chain_matmul layer_norm rms_norm cross_entropy nll_loss linear "
    "scaled_dot_product_attention".split()
)
# Modules of the standard library that hold no way out: any file may import them.
PLAIN = frozenset("__future__ collections dataclasses enum functools itertools math string textwrap typing".split())
FORBIDDEN_NAMES = frozenset(
    "exec eval compile __import__ globals locals vars breakpoint input memoryview getattr setattr delattr open".split()
)
# What a file may reach through the modules it imports, where its backend restricts torch; triton and math as they are.
REACHABLE = frozenset(
    "torch.cuda.get_device_properties torch.cuda.get_device_capability torch.cuda.current_device torch.cuda.device "
    "torch.cuda.current_stream torch.cuda.is_available torch.version.cuda torch.version.hip tvm_ffi.cpp.load_inline "
    "tvm_ffi.from_dlpack tvm_ffi.Tensor tvm_ffi.use_torch_stream".split()
)
# Modules of the interpreter, which many a library carries as attributes; and corners of torch that reach past tensors.
INTERPRETER = frozenset(
    "sys os ctypes inspect gc builtins importlib subprocess threading socket pickle signal atexit io weakref types "
    "multiprocessing mmap time".split()
)
PAST_TENSORS = (
    "torch.ops.load_library", "torch.classes", "torch.utils.cpp_extension", "torch.hub", "torch.library", "torch.load",
    "torch.save", "torch.serialization", "torch.package", "torch.distributed", "torch.overrides", "torch.from_file",
)  # fmt: skip
FORBIDDEN_SOURCE = re.compile(
    r"\b(GetGlobal|process_vm_\w+|pthread_create|system|popen|fork|vfork|execv\w*|execl\w*|dlopen|dlsym|ptrace|socket|mmap|mprotect|getenv|setenv|fopen|ifstream|"
    r"ofstream|syscall|cblas_\w+|sgemm_?|dgemm_?|mkl_\w+|cublas\w*|cudnn\w*)\s*\("
)


def refusal(tree: ast.Module, imports: frozenset[str], torch_names: frozenset[str] | None) -> str | None:
    """Why this file is refused, or None.

    ``imports`` are the top-level modules it may import; ``torch_names`` what it may use of torch (None: all of it,
    tensor arithmetic included).
    """
    if not any(isinstance(node, ast.FunctionDef) and node.name == "kernel_fn" for node in tree.body):
        return "the file defines no function kernel_fn"
    modules = _modules(tree)
    for node in ast.walk(tree):
        reason = _node_refusal(node, imports, torch_names) or _reach_refusal(node, modules, torch_names)
        if reason:
            return f"line {getattr(node, 'lineno', '?')}: {reason}"
    bases = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in modules and id(node) not in bases:
            return f"line {node.lineno}: the module {modules[node.id]} is used as a value: only its functions may be"
    return None


def _modules(tree: ast.Module) -> dict[str, str]:
    """Names that stand for modules, and the dotted path of each: ``import a.b as c`` gives {"c": "a.b"}."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if f"{node.module}.{alias.name}" in (
                    "torch.nn",
                    "torch.nn.functional",
                    "tvm_ffi.cpp",
                    "triton.language",
                ):
                    found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def _path(node: ast.expr, modules: dict[str, str]) -> str | None:
    """The dotted path that a chain of attributes on a module names, or None."""
    if isinstance(node, ast.Name):
        return modules.get(node.id)
    if isinstance(node, ast.Attribute):
        base = _path(node.value, modules)
        return f"{base}.{node.attr}" if base else None
    return None


def _reach_refusal(node: ast.AST, modules: dict[str, str], torch_names: frozenset[str] | None) -> str | None:
    """Why what this node reaches through a module is refused, or None."""
    if isinstance(node, ast.ClassDef) and any(_path(base, modules) == "torch.Tensor" for base in node.bases):
        return "a subclass of torch.Tensor"
    if isinstance(node, ast.ImportFrom) and any(alias.name in INTERPRETER or alias.name == "*" for alias in node.names):
        return f"import from '{node.module}' of what is not its own"
    path = _path(node, modules) if isinstance(node, ast.Attribute) else None
    if path is None or not isinstance(node, ast.Attribute):
        return None
    if not isinstance(node.ctx, ast.Load):
        return f"{path} is changed: a kernel changes no library"
    if node.attr in INTERPRETER or node.attr.startswith("_"):
        return f"{path} reaches past the library"
    if path.startswith(PAST_TENSORS):
        return f"{path} reaches past tensors"
    root, _, rest = path.partition(".")
    if torch_names is None or root not in ("torch", "tvm_ffi"):
        return None
    if (root == "torch" and rest.split(".")[0] in torch_names - {"cuda", "version"}) or path in REACHABLE:
        return None
    return None if any(each.startswith(path + ".") for each in REACHABLE) else f"{path} is not for kernels to use"


def _node_refusal(node: ast.AST, imports: frozenset[str], torch_names: frozenset[str] | None) -> str | None:
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for module in modules:
            if module.split(".")[0] not in imports | PLAIN:
                return f"import of '{module}'; allowed: {', '.join(sorted(imports | PLAIN))}"
        if torch_names is not None and any(m.startswith("torch.") for m in modules):
            return f"import of '{modules[0]}': only torch's allocation functions are allowed"
        if torch_names is not None and isinstance(node, ast.ImportFrom) and node.module == "torch":
            outside = [alias.name for alias in node.names if alias.name not in torch_names]
            return f"torch.{outside[0]} is not an allocation" if outside else None
    if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES:
        return f"use of {node.id}"
    if isinstance(node, ast.Attribute):
        if node.attr.startswith("__") and node.attr.endswith("__") and node.attr not in ("__name__", "__doc__"):
            return f"use of the attribute {node.attr}"
        if torch_names is not None:
            if isinstance(node.value, ast.Name) and node.value.id == "torch" and node.attr not in torch_names:
                return f"torch.{node.attr} is not an allocation: the kernel's own code must do the work"
            if node.attr in TENSOR_COMPUTE and not isinstance(node.value, ast.Name | ast.Call):
                return f"the tensor method .{node.attr} computes: the kernel's own code must do the work"
            if node.attr in TENSOR_COMPUTE and isinstance(node.value, ast.Name) and node.value.id != "math":
                return f"the tensor method .{node.attr} computes: the kernel's own code must do the work"
    if torch_names is not None and isinstance(node, ast.MatMult):
        return "the operator @ computes: the kernel's own code must do the work"
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        call = FORBIDDEN_SOURCE.search(node.value)
        if call and torch_names is not None:
            return f"the embedded source calls {call.group(1)}"
    return None
