"""Any OpenAI-compatible server: vLLM's own, SGLang, llama.cpp, a vendor's."""

from typing import Literal

from dpo_data.chat import ChatClient
from dpo_data.seams import Settings


class Server(Settings):
    """A chat server at `base_url`. The key comes from the environment variable `key_env` alone.

    `concurrency`: prompts that are asked at once; a server of your own is busy with as many answers as it batches (vLLM:
    `max_num_seqs`), and a prompt brings n of them.
    `logprobs`: ask for the answers' log-probs, which also counts their tokens; turn it off where a server refuses.
    `structured`: hold a judge's answers to their JSON schema; without, its prompt alone asks for JSON.
    """

    incidental = frozenset({"key_env", "concurrency", "retries", "timeout"})
    type: Literal["server"] = "server"
    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 64
    retries: int = 5
    timeout: float = 600.0
    logprobs: bool = True
    structured: bool = True

    def build(self) -> ChatClient:
        return ChatClient(
            self.base_url,
            self.model,
            key_env=self.key_env,
            concurrency=self.concurrency,
            retries=self.retries,
            timeout=self.timeout,
            logprobs=self.logprobs,
            structured=self.structured,
        )
