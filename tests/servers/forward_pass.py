"""V and H of given steps by one plain transformers forward pass in float32.

Run in the reference environment (torch, transformers, gguf), which has none of our code:
`forward_pass.py MODEL < cases.json > results.json`, MODEL being a GGUF file or a Hugging Face
folder. Written from `algorithm.md` alone. The whole text is tokenised at once by transformers, and
each token counts for the step it ends in.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main() -> None:
    path = Path(sys.argv[1])
    cases = json.load(sys.stdin)
    tokenizer, model = of_folder(path) if path.is_dir() else of_gguf(path)
    json.dump([score(model.eval(), tokenizer, case) for case in cases], sys.stdout)


def of_folder(folder: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(folder), model


def of_gguf(path: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name), model


def score(model: Any, tokenizer: Any, case: dict[str, Any]) -> list[dict[str, Any]]:
    prompt, steps = case["prompt"], case["steps"]
    text = prompt + "".join(steps)
    # Tokenizers cut trailing white space differently where the text continues, and it does: the
    # student had written more, or ended its turn.
    encoded = tokenizer(text + "a" if text[-1].isspace() else text, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0].double()
    logprobs = torch.log_softmax(logits, dim=-1)

    results = []
    start = len(prompt)
    for step in steps:
        end = start + len(step)
        inside = [i for i, (_, stop) in enumerate(offsets) if start < stop <= end]
        chosen = [logprobs[i - 1, ids[i]].item() for i in inside]
        top = torch.topk(logits[inside[0] - 1], 20).values.softmax(dim=-1)
        results.append(
            {
                "value": math.exp(sum(chosen) / len(chosen)),
                "entropy": -(top * top.log()).sum().item(),
                "token_ids": [ids[i] for i in inside],
            }
        )
        start = end
    return results


if __name__ == "__main__":
    main()
