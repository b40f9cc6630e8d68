"""The weights in somebody's checkpoint, whatever they are wrapped in, and how they load into a network."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from nni_blockswap.errors import CheckpointError
from nni_blockswap.networks import not_finite

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
"""Where programs keep the moving average of the weights, which is what they judge a network by."""

HOLDERS = (*AVERAGES, "state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights")
"""Where they keep a state_dict; the first of these that there is holds what is taken."""

PREFIXES = ("average.module.", "network.", "model.", "module.", "_orig_mod.", "net.")
"""What wrappers put in front of every name: training here, Lightning, DDP, torch.compile."""


def weights_of(checkpoint: Any, names: Collection[str] = ()) -> dict[str, Tensor]:
    """The state_dict in a checkpoint: plain, or of a Lightning module, a DDP or compiled one; an average comes first.

    A Lightning module may have other parts beside its network, which are left out.

    Args:
        names: of the network that it is for; prefixes are taken off until some of these are among them.

    Raises:
        CheckpointError: it holds none.
    """
    state = _state(checkpoint)
    if state is None:
        held = f"; this one holds {', '.join(map(str, list(checkpoint)[:6]))}" if isinstance(checkpoint, dict) else ""
        raise CheckpointError(f"a checkpoint holds a state_dict: a mapping from parameter names to tensors{held}.")
    enough = any if isinstance(checkpoint, Mapping) and "pytorch-lightning_version" in checkpoint else all
    while not state.keys() & set(names):
        prefix = next((one for one in PREFIXES if enough(key.startswith(one) for key in state)), None)
        if prefix is None:
            break
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        enough = all
    return state


def _state(content: Any) -> dict[str, Tensor] | None:
    """The first state_dict in a checkpoint, from outside in."""
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return dict(content)
    held = (_state(content[name]) for name in HOLDERS if name in content)
    return next((state for state in held if state is not None), None)


def load_weights(network: nn.Module, checkpoint: Any, source: str) -> None:
    """Load the state_dict in ``checkpoint``, all of it and nothing else, into ``network``.

    Raises:
        CheckpointError: it holds none; names or shapes differ; or some are no finite numbers.
    """
    state = weights_of(checkpoint, network.state_dict().keys())
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:  # about shapes, a line each
        first, *rest = (line.strip().rstrip(".") for line in str(error).splitlines()[1:])
        faults = [first + _more(rest)]
    else:
        kinds = (("missing", missing), ("unexpected", unexpected))
        faults = [f"{kind} {', '.join(keys[:3])}{_more(keys[3:])}" for kind, keys in kinds if keys]
    if faults:
        raise CheckpointError(
            f"the weights in '{source}' do not fit the network: {'; '.join(faults)}; "
            "a teacher is the search space's network with 'S' in every block."
        )
    wrong = not_finite(network, among=state.keys())
    if wrong is not None:
        raise CheckpointError(f"the weights in '{source}' are not all finite numbers: {wrong}.")


def _more(rest: list[str]) -> str:
    return f" and {len(rest)} more" if rest else ""
