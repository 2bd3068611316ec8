"""Write texts with a trained model from Python: `python write_texts.py runs/gpt2 "A prompt"`."""

import sys
from pathlib import Path

from tencentpretrain.generate.decoding import Decoding
from tencentpretrain.tools.generate import generator_of
from tencentpretrain.tools.saved_model import ToolConfig, load_model


def main(run: str, *prompts: str) -> None:
    """Print a greedy text, one that is drawn and the best one of a search for each prompt."""
    config = ToolConfig(checkpoint=Path(run), device="cpu")
    machine = config.machine()
    generator = generator_of(load_model(config, machine), machine)
    ways = {
        "greedy": Decoding(max_new_tokens=20),
        "drawn": Decoding(max_new_tokens=20, temperature=0.8, top_p=0.95, seed=1),
        "search": Decoding(max_new_tokens=20, beams=4, length_penalty=0.8),
    }
    for name, decoding in ways.items():
        # The prompts are one batch; each text is the same in any other.
        for prompt, answer in zip(prompts, generator.generate(prompts, decoding), strict=True):
            print(f"{name} ({answer.finish}): {prompt}{answer.text}")
    # Pieces of a text while it is written, whole characters only.
    generator.generate(
        prompts[:1],
        Decoding(max_new_tokens=20, stop=["\n\n"]),
        report=lambda place, piece: print(piece, end="", flush=True),
    )
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
