"""What a memory estimate takes for granted, and what about it has not been verified.

Knows: the choices of a job that move its result most, and the combinations that were compared with measurements.
Does not know: the numbers themselves (memory.py).
"""

from __future__ import annotations

from peftsmith.finding import Finding, finding
from peftsmith.model import methods
from peftsmith.model.peak import Job

# Types whose formulas were compared with published or own measurements.
VERIFIED = ("llama", "mistral", "qwen2")
# Built of the same parts: RMS norms, rotary embeddings, separate projections and a gated MLP.
ALIKE = (
    "qwen3", "smollm3", "granite", "gemma", "gemma2", "gemma3_text", "olmo",
    "olmo2", "cohere", "stablelm", "exaone4", "seed_oss", "arcee", "baichuan",
)  # fmt: skip
_LOSSES = {
    "trl_chunked": "loss: TRL 1.16's default, which never holds all logits",
    "stock": "loss: the stock causal-LM loss on all logits",
    "stock_narrow": "loss: on all logits, in the model's own number format",
    "fused": "loss: a fused kernel that writes the gradient into the float32 logits",
    "fused_narrow": "loss: a fused kernel on all logits, in the model's own number format",
    "liger": "loss: fused with the head in chunks (Liger, cut cross-entropy)",
}
_KERNELS = {"flash": "FlashAttention", "sdpa": "SDPA", "eager": "eager (keeps all probabilities)"}


def verified(job: Job) -> bool:
    """Whether the formulas for this model's parts and this method were compared with measurements."""
    return job.anatomy.model_type in (*VERIFIED, *ALIKE) and job.request.peft_type not in methods.APPROXIMATE


def of(job: Job) -> list[str]:
    """What was assumed, the most important first."""
    request, numbers = job.request, job.numbers
    mask = " with a mask of its own" if numbers.masked and not numbers.flash else ""
    assumed = [
        f"the longest batch is {request.batch_size} x {request.sequence_length} tokens, padding included",
        "loss over class labels" if request.task == "classification" else _LOSSES[request.loss],
        (
            "all weights train"
            if request.peft_type is None
            else f"{request.peft_type} in {numbers.adapter * 8}-bit numbers"
        )
        + (", with autocast" if numbers.autocast else ", no autocast"),
        f"attention: {_KERNELS[request.attention]}{mask}",
        f"optimiser {request.optimizer}; no evaluation or generation at a larger batch",
    ]
    if request.base_format not in (None, "none"):
        prepared = (
            "k-bit preparation (float32 norms and embeddings)" if request.kbit_prepared else "no k-bit preparation"
        )
        assumed += [f"base in {request.base_format}", prepared]
    if request.gpus > 1:
        assumed.append(f"{request.gpus} devices, {request.sharding}; the figures are for one of them")
    assumed.append(
        "a Python process before the model, and a heap that keeps what was freed"
        if request.device == "cpu"
        else "a CUDA context of 0.4 to 0.8 GiB, and an allocator that is not told to use expandable segments"
    )
    return assumed


def doubts(job: Job) -> list[Finding]:
    """What was not verified about this estimate."""
    request, anatomy = job.request, job.anatomy
    found = []
    if anatomy.model_type not in VERIFIED:
        found.append(finding("model.memory.unverified", model_type=anatomy.model_type))
    if any(body.state for body in job.bodies):
        found.append(
            finding(
                "model.memory.unverified",
                "State layers (mamba, linear attention) have no formula of their own here; precise mode traces them.",
                model_type=anatomy.model_type,
            )
        )
    if request.peft_type in methods.APPROXIMATE:
        found.append(
            finding(
                "model.memory.unverified",
                f"What {request.peft_type} keeps is bounded, not exact; precise mode traces it.",
                method=request.peft_type,
            )
        )
    if request.device == "cpu" and request.precision != "fp32":
        found.append(
            finding(
                "model.memory.unverified",
                f"On the CPU the formulas were checked with fp32 only, not with {request.precision}.",
                precision=request.precision,
            )
        )
    if request.device == "cpu" and request.base_format not in (None, "none"):
        found.append(finding("model.memory.no_quantisation_on_cpu"))
    if anatomy.max_positions and request.sequence_length > anatomy.max_positions:
        found.append(
            finding(
                "model.memory.beyond_positions",
                sequence_length=request.sequence_length,
                max_positions=anatomy.max_positions,
            )
        )
    return found
