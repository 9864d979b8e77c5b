"""dpo-data: build preference datasets from the very model they will train.

prompts ─▶ sample ─▶ rank ─▶ pair ─▶ train ─▶ evaluate

One word per stage: it names the module, the function, the recipe's table, the command, the Prefect task and the folder.
"""

__version__ = "0.1.0"
