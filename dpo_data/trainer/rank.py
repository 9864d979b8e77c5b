"""One of several processes that train together; `accelerate launch` starts it, and the first of them speaks for all."""

import json
import os
import sys
from pathlib import Path

from dpo_data.child import Parent
from dpo_data.trainer.child import do
from dpo_data.trainer.launch import JOB, TOLD


def main(place: Path) -> None:
    """Do the job that lies in the folder `place`, on the GPU of this process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    told = place / TOLD if os.environ["RANK"] == "0" else Path(os.devnull)
    do(json.loads((place / JOB).read_text()), Parent(os.open(os.devnull, os.O_RDONLY), os.open(told, os.O_WRONLY)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
