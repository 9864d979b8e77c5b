"""What `train.py` measures, on a GPU: bf16, a Llama of 0.5B random parameters, 512 pairs, 8 a step.

    python benchmarks/gpu_train.py [--device cpu] [--tiny] [--passes 3] [--method full]

TRL scores the answers' tokens alone there by itself. `--tiny` shrinks all, to see that the script runs where there is no GPU.
"""

import argparse
import tempfile
from pathlib import Path

from train import Setting, ladder, make_model, make_side

SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16}
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--method", default="lora", choices=["lora", "full"])
    given = parser.parse_args()
    sizes = {"vocab_size": 32_000, **(TINY if given.tiny else SIZES)}
    length, pairs, batch_size = (16, 16, 4) if given.tiny else (128, 512, 8)
    setting = Setting(sizes, length, pairs, batch_size, given.method, given.device, bf16=given.device == "cuda")
    with tempfile.TemporaryDirectory() as name:
        make_model(setting, Path(name))
        print(_hardware(given.device), flush=True)
        ladder(setting, Path(name), given.passes)
        if given.device == "cuda":
            _memory(setting, Path(name))


def _hardware(device: str) -> str:
    import torch
    import transformers
    import trl

    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{where}; torch {torch.__version__}, transformers {transformers.__version__}, trl {trl.__version__}"


def _memory(setting: Setting, folder: Path) -> None:
    """Print how much of the GPU's memory TRL and ours take at most, by turns."""
    import gc

    import torch

    peaks = []
    for rung in (0, 4):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        side = make_side(rung, setting, folder)
        side.steps()
        peaks.append(torch.cuda.max_memory_allocated() / 2**20)
        del side
    print(f"{setting.method:5} peak memory: TRL {peaks[0]:.0f} MiB, ours {peaks[1]:.0f} MiB, {peaks[1] / peaks[0]:.2f} ×")


if __name__ == "__main__":
    main()
