"""Where models compute: choosing a device, and bringing it what the host knows without waiting for it."""

from collections.abc import Callable

import torch
from torch import Tensor

from asr.limits import checked_name

#: Priorities of streams of a GPU. CUDA's lowest is that of the default stream, so what goes first is lifted.
FIRST, LAST = -1, 0


def choose(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU that torch sees, else the CPU.

    Raises:
        ValueError: there is no such device here; one line that says what to do.
    """
    n_gpus = torch.cuda.device_count() if checked_name(name) != "cpu" and torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not n_gpus):
        return torch.device("cpu")
    if not n_gpus:
        built = torch.version.cuda or torch.version.hip
        why = "torch finds no GPU that it can use" if built else "this torch was built for CPUs only"
        raise ValueError(f"device {name}: {why}; `cpu` and `auto` work here")
    number = int(name.partition(":")[2] or 0)
    if number >= n_gpus:
        raise ValueError(f"device {name}: torch sees {n_gpus} here, and counts from cuda:0")
    return torch.device("cuda", number)


def described(device: torch.device | str) -> str:
    """`cpu`, or a GPU's own name: what times depend on."""
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def own_stream(device: torch.device, priority: int) -> None:
    """Has this thread launch in a stream of its own from now on, so that it does not wait for what others launch.

    The GPU waits for what lies in the default stream by now: weights and states. What other threads give to this one
    later must go by way of the host, or be `handed_over`. On a CPU nothing changes.

    Args:
        priority: FIRST or LAST, where the GPU has not room for all.
    """
    if device.type == "cuda":
        stream = torch.cuda.Stream(device, priority)
        stream.wait_stream(torch.cuda.default_stream(device))
        torch.cuda.set_stream(stream)


def handed_over(x: Tensor) -> Callable[[], Tensor]:
    """`x` for a thread with a stream of its own, to be taken there: that stream waits for what makes `x`."""
    if x.device.type != "cuda":
        return lambda: x
    made = torch.cuda.current_stream(x.device).record_event()

    def taken() -> Tensor:
        stream = torch.cuda.current_stream(x.device)
        stream.wait_event(made)
        x.record_stream(stream)  # its memory is not given away before that stream has read it
        return x

    return taken


def upload(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host's on `device`, on its way while the host goes on; where it is there already, as it is."""
    if device.type == "cpu" or x.device.type != "cpu":
        return x
    return x.pin_memory().to(device, non_blocking=True)  # from other memory the host would wait
