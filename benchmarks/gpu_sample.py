"""What `sample.py` measures, on a GPU: bf16, a Llama of 1.1B random parameters, prompts of 150 words and answers of 200 tokens.

    python benchmarks/gpu_sample.py [--n 1 8 32] [--only raw pipeline] [--rounds 3] [--answers 2048] [--prompt 150] \
        [--sizes JSON] [--workers 1] [--args JSON]

`--n` and `--only` choose a part, where time is short. `--workers` are the sample stage's: where they are more than the GPUs,
those that share one share the memory that one engine has, too. `--args` are more of vLLM's engine arguments, for every way.
`--device cpu --tiny` shrinks all, to see that the script runs where there is no GPU.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from made_up import Setting
from sample import SETTING, WAYS, compare

SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
ARGS = {
    "dtype": "bfloat16",
    "max_model_len": 4096,
    "max_num_seqs": 256,
    "gpu_memory_utilization": 0.3,
    "kv_cache_memory_bytes": 16 * 2**30,
}
"""Three engines share the GPU's memory, by turns idle."""
GPU = Setting(SIZES, 32_000, prompt=150, answer=200, max_tokens=1024, answers=2048, args=ARGS)
TINY = replace(SETTING, vocabulary=400, prompt=8, answer=6, max_tokens=16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--answers", type=int, help="how many a round has")
    parser.add_argument("--prompt", type=int, help="words of a prompt, in the median")
    parser.add_argument("--sizes", type=json.loads, default={}, help="more of the model's LlamaConfig, as JSON")
    parser.add_argument("--workers", type=int, default=1, help="of the sample stage")
    parser.add_argument("--args", type=json.loads, default={}, help="more of vLLM's engine arguments, as JSON")
    given = parser.parse_args()
    setting = TINY if given.tiny else SETTING if given.device == "cpu" else GPU
    setting = replace(
        setting,
        answers=given.answers or setting.answers,
        prompt=given.prompt or setting.prompt,
        rounds=given.rounds,
        workers=given.workers,
        sizes={**setting.sizes, **given.sizes},
        args={**setting.args, **given.args},
    )
    with tempfile.TemporaryDirectory() as folder:
        compare(setting, given.n, given.only, Path(folder))


if __name__ == "__main__":
    main()
