"""A transformers model in place of a model file: ``hf:NAME_OR_PATH``, with its own weights or with random ones.

With ``random_weights`` the config alone is needed: a local folder with a config.json, a cached or reachable id, or,
where neither is at hand, the name of a model type that transformers knows (``hf:gpt2``), whose default config is taken.
The model runs as its users run it, but for the key-value cache, which is off: one forward over whole sequences.
Code that comes with a model (``trust_remote_code``) is never run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import torch

from autokernel import modelref
from autokernel.types import AutokernelError

CONNECT_S = 3.0  # until the hub counts as out of reach: its own client retries for half a minute
AUTO = (  # which head a config without "architectures" gets: the first that knows its type
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "AutoModelForSeq2SeqLM"),
    ("MODEL_FOR_MASKED_LM_MAPPING", "AutoModelForMaskedLM"),
    ("MODEL_FOR_CAUSAL_LM_MAPPING", "AutoModelForCausalLM"),
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", "AutoModelForImageClassification"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What ``--set`` may say. ``batch`` and ``seq`` size the token ids (images: ``batch`` alone); ``mask`` passes an
    attention mask of ones; ``random_weights`` is ``--random-weights``.
    """

    batch: int = 1
    seq: int = 128
    mask: bool = False
    random_weights: bool = False


@dataclasses.dataclass(frozen=True)
class Built:
    """The module, on its device and in its dtype; ``draw()`` gives the positional arguments of one forward from
    PyTorch's global generator; ``notes`` is what the owner has to know.
    """

    module: torch.nn.Module
    draw: Callable[[], tuple[Any, ...]]
    notes: tuple[str, ...]


def build(name: str, device: torch.device, dtype: torch.dtype, settings: Settings, *, labels: bool = False) -> Built:
    """The model behind ``hf:name``; weights are drawn from the global generator where they are random. With ``labels``
    its inputs have labels where it takes them, so that its output has a loss.

    Raises AutokernelError: transformers is missing, there is no such model here or in reach, its inputs are of a kind
    that is not made here, or a setting does not fit it.
    """
    for size in ("batch", "seq"):
        if getattr(settings, size) < 1:
            raise AutokernelError(f"setting {size} was expected to be at least 1; got {getattr(settings, size)}")
    transformers = _transformers()
    transformers.utils.logging.set_verbosity_error()
    config, notes = _config(transformers, name, settings.random_weights)
    if hasattr(config, "use_cache"):
        config.use_cache = False
    if settings.random_weights:
        factory = _class(transformers, config)
        with _default_dtype(dtype), device:
            module = factory.from_config(config) if hasattr(factory, "from_config") else factory(config)
    else:
        module = _pretrained(transformers, name, config, dtype)
    module = module.to(device)
    draw = _draw(module, settings)
    return Built(module, _labelled(module, draw, device, dtype) if labels else draw, notes)


def _transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise AutokernelError(
            f"hf: models were expected to find the package transformers; it is missing ({error}): "
            "pip install 'autokernel[hf]'"
        ) from error


def _config(transformers: ModuleType, name: str, random_weights: bool) -> tuple[Any, tuple[str, ...]]:
    """The config of a folder, a cached id, an id in reach, or a type's default; and what to tell of it."""
    auto = transformers.AutoConfig
    if modelref.is_folder(name):
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            there = "it has none" if folder.is_dir() else "there is no such folder"
            raise AutokernelError(f"hf:{name} was expected to be a folder with a config.json; {there}")
        return _from_hub(lambda: auto.from_pretrained(str(folder)), name), ()
    with contextlib.suppress(OSError):
        return _from_hub(lambda: auto.from_pretrained(name, local_files_only=True), name), ()
    if _hub_in_reach():
        with contextlib.suppress(OSError):
            return _from_hub(lambda: auto.from_pretrained(name), name), ()
        why = "the hub has no such id, or does not let you have it"
    else:
        why = "it is not in the cache, and the hub cannot be reached"
    if name in transformers.CONFIG_MAPPING and random_weights:
        note = f"hf:{name}: {why}: this is transformers' default configuration of the type '{name}'"
        return auto.for_model(name), (note,)
    hint = "; --random-weights builds its type's default configuration" if name in transformers.CONFIG_MAPPING else ""
    raise AutokernelError(
        f"hf:{name} was expected to be a Hugging Face id or a local folder (hf:./folder); {why}{hint or _near(name)}"
    )


def _near(name: str) -> str:
    folder = Path(name).parent
    return f"; {folder} is a folder, and has no {Path(name).name}" if folder != Path() and folder.is_dir() else ""


def _from_hub(load: Callable[[], Any], name: str) -> Any:
    """What transformers refuses in a config, in one line; a missing file (OSError) is the caller's."""
    try:
        return load()
    except (ValueError, KeyError, TypeError) as error:
        raise AutokernelError(f"hf:{name}: transformers cannot take its config.json: {_first(error)}") from error


def _hub_in_reach() -> bool:
    constants = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        with socket.create_connection((address.hostname or "", port), CONNECT_S):
            return True
    except OSError:
        return False


def _class(transformers: ModuleType, config: Any) -> Any:
    """The class that the config names, or the automatic one that knows its type."""
    for architecture in getattr(config, "architectures", None) or ():
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture)
    for mapping, auto in AUTO:
        if type(config) in getattr(transformers, mapping):
            return getattr(transformers, auto)
    return transformers.AutoModel


def _pretrained(transformers: ModuleType, name: str, config: Any, dtype: torch.dtype) -> Any:
    place = str(Path(name).expanduser()) if modelref.is_folder(name) else name
    release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    try:
        return _class(transformers, config).from_pretrained(
            place, config=config, **{"dtype" if release >= (4, 56) else "torch_dtype": dtype}
        )
    except OSError as error:
        raise AutokernelError(
            f"hf:{name}: its weights were expected beside its config.json, in the cache or in reach; "
            f"--random-weights needs none: {_first(error)}"
        ) from error


def _labelled(
    module: torch.nn.Module, draw: Callable[[], tuple[Any, ...]], device: torch.device, dtype: torch.dtype
) -> Callable[[], tuple[Any, ...]]:
    """The same arguments and a label for each row of the logits; as they were for a model that takes no labels."""
    parameters = inspect.signature(module.forward).parameters
    if "labels" not in parameters:
        return draw
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        given = [x.to(device, dtype) if x is not None and x.is_floating_point() else x for x in draw()]
        logits = getattr(module(*(x if x is None else x.to(device) for x in given)), "logits", None)
    if logits is None:
        return draw
    classes, rows = logits.shape[-1], logits.shape[:-1]

    def draw_labelled() -> tuple[Any, ...]:
        before = dict(zip(parameters, draw(), strict=False))
        return _positional(parameters, {**before, "labels": torch.randint(0, classes, rows)})

    return draw_labelled


def _draw(module: torch.nn.Module, settings: Settings) -> Callable[[], tuple[Any, ...]]:
    """Draws the arguments of one forward. What is left out is None, or stands behind the last that is given."""
    config: Any = module.config
    main = getattr(module, "main_input_name", "input_ids")
    parameters = inspect.signature(module.forward).parameters
    if main == "pixel_values":
        vision = getattr(config, "vision_config", config)
        size, channels = getattr(vision, "image_size", None), getattr(vision, "num_channels", 3)
        if size is None or "input_ids" in parameters:
            raise _unknown_inputs(module, main)
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        return lambda: _positional(parameters, {main: torch.randn(settings.batch, channels, height, width)})
    if main != "input_ids" or "input_ids" not in parameters:
        raise _unknown_inputs(module, main)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    most = getattr(text, "max_position_embeddings", None)
    if isinstance(most, int) and 0 < most < settings.seq:
        raise AutokernelError(
            f"setting seq was expected to be at most {most}, the positions of this model; got {settings.seq}"
        )

    def draw() -> tuple[Any, ...]:
        def tokens() -> torch.Tensor:
            return torch.randint(0, int(text.vocab_size), (settings.batch, settings.seq))

        given = {"input_ids": tokens()}
        if settings.mask and "attention_mask" in parameters:
            given["attention_mask"] = torch.ones(settings.batch, settings.seq, dtype=torch.long)
        if getattr(config, "is_encoder_decoder", False):
            given["decoder_input_ids"] = tokens()
        return _positional(parameters, given)

    return draw


def _positional(parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments by position, as every forward here is called: those between that are not given are None."""
    names = list(parameters)
    last = max(names.index(name) for name in given)
    return tuple(given.get(name) for name in names[: last + 1])


def _unknown_inputs(module: torch.nn.Module, main: str) -> AutokernelError:
    return AutokernelError(
        f"{type(module).__name__} takes {main}, and inputs of that kind are not made here (token ids and single images "
        "are): write a model file around it, see models/template.py"
    )


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters are made in this dtype; what a model insists to hold in float32 (rotary tables) stays so."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
