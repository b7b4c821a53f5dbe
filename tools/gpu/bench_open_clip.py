"""Times open_clip's training steps on the same GPU as bench_steps.py times jclip's, data excluded: one JSON object a line.

    python tools/gpu/bench_open_clip.py ViT-B-32:1024 ViT-L-14:128        model and batch

Needs torch and open_clip. Forward under autocast to bfloat16 with float32 parameters, scaled-dot-product attention,
open_clip's loss, backward, fused AdamW; the model through torch.compile unless --eager.
"""

import argparse
import importlib
import json
import statistics
import time
from typing import Any

ROWS = ("ViT-B-32:1024", "ViT-B-16:512", "ViT-L-14:128")


def main() -> None:
    """Prints a line a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", default=ROWS, help="MODEL:BATCH (default: three models)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each (default: 10)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    options = parser.parse_args()
    torch = importlib.import_module("torch")
    facts = {
        "peer": "open_clip",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "compiled": not options.eager,
    }
    for row in options.rows:
        name, _, batch = row.partition(":")
        try:
            result = measure(name, int(batch), options.steps, not options.eager)
        except Exception as error:  # out of memory is a result too
            result = {"error": str(error).splitlines()[0][:200]}
        torch.cuda.empty_cache()
        print(json.dumps({"model": name, "batch": int(batch), **facts, **result}), flush=True)


def measure(name: str, batch: int, steps: int, compiled: bool) -> dict[str, Any]:
    """Runs the steps, and returns what is reported."""
    torch, open_clip = importlib.import_module("torch"), importlib.import_module("open_clip")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.cuda.reset_peak_memory_stats()
    model = open_clip.create_model(name, precision="amp_bf16", device="cuda", output_dict=True)
    run = torch.compile(model) if compiled else model
    loss_fn = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True)
    size = model.visual.image_size
    images = torch.randn(batch, 3, *(size if isinstance(size, tuple) else (size, size)), device="cuda")
    texts = torch.randint(1, 49407, (batch, 77), device="cuda")
    texts[:, 20] = 49407
    times = []
    for _ in range(steps + 3):
        began = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            out = run(images, texts)
            loss = loss_fn(out["image_features"], out["text_features"], out["logit_scale"])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss.item()
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[3:])
    peak = torch.cuda.max_memory_allocated() / 2**30
    return {"seconds": round(seconds, 4), "pairs_per_s": round(batch / seconds, 1), "peak_gib": round(peak, 2)}


if __name__ == "__main__":
    main()
