"""Generate tests/fixtures/preferences: losses of preferences and their gradients, computed by PyTorch in f64.

The model is tests/fixtures/llama_like, whose forward pass scripts/make_reference.py compares with transformers. The
reference is the same model without the output of its last feed-forward layer. The losses are written as in TRL 1.16
(trl/trainer/dpo_trainer.py and kto_trainer.py), with the label smoothing of conservative DPO.

    case.json              samples (ids, and where the completion starts) in pairs: chosen and rejected, and for KTO a
                           rated completion and a mismatched one; their log probabilities under model and reference; and
                           for each loss its settings, its value and the metrics under TRL's names
    gradients.safetensors  the gradients of some parameters, named LOSS.PARAMETER

    pip install torch transformers safetensors
    python scripts/make_preference_reference.py

The committed files come from torch 2.15.0.
"""

import json

import torch
import torch.nn.functional as F
from make_reference import FIXTURES, LLAMA_LIKE, VOCAB, our_logits
from safetensors.torch import load_file, save_file

FOLDER = FIXTURES / "preferences"
PAIRS = 4
RATINGS = [True, False, False, True]
BETA = 0.1
PARAMETERS = [
    "token_embedding.weight", "blocks.0.attention.query.weight", "blocks.1.feed_forward.down.weight",
    "final_norm.weight", "head.weight",
]  # fmt: skip
LOSSES = {
    "dpo": {"loss": "dpo", "beta": BETA},
    "dpo_smoothed": {"loss": "dpo", "beta": 0.5, "label_smoothing": 0.1},
    "ipo": {"loss": "ipo", "beta": BETA},
    "kto": {"loss": "kto", "beta": BETA, "desirable_weight": 1.5, "undesirable_weight": 0.5},
}


def make_samples(seed):
    """Return pairs of samples with the same prompt."""
    rng = torch.Generator().manual_seed(seed)
    number = lambda low, high: torch.randint(low, high + 1, (), generator=rng).item()
    ids = lambda count: torch.randint(VOCAB, (count,), generator=rng).tolist()
    samples = []
    for _ in range(PAIRS):
        prompt = ids(number(2, 6))
        samples += [{"ids": prompt + ids(number(1, 8)), "start": len(prompt)} for _ in range(2)]
    return samples


def log_prob(weights, sample):
    """Return the log probability of a completion."""
    ids = torch.tensor([sample["ids"]])
    logits = our_logits(LLAMA_LIKE, weights, ids[:, :-1])[0]
    of_targets = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return of_targets[sample["start"] - 1 :].sum()


def token_count(sample):
    """Return the number of tokens of a completion."""
    return len(sample["ids"]) - sample["start"]


def pair_losses(settings, policy, reference, counts):
    """Return the losses of pairs: TRL's `sigmoid` and `ipo`."""
    beta, smoothing = settings["beta"], settings.get("label_smoothing", 0.0)
    ratios = policy - reference
    chosen, rejected = ratios[0::2], ratios[1::2]
    if settings["loss"] == "ipo":
        delta = chosen / counts[0::2] - rejected / counts[1::2]
        return (delta - 1 / (2 * beta)) ** 2
    delta = chosen - rejected
    return -F.logsigmoid(beta * delta) * (1 - smoothing) - F.logsigmoid(-beta * delta) * smoothing


def rated_losses(settings, policy, reference):
    """Return the losses of rated completions and the estimated divergence: TRL's `kto`."""
    beta, ratios = settings["beta"], policy - reference
    kl = ratios[1::2].mean().clamp(min=0).detach()
    good = torch.tensor(RATINGS)
    chosen, rejected = ratios[0::2][good], ratios[0::2][~good]
    chosen = settings["desirable_weight"] * (1 - F.sigmoid(beta * (chosen - kl)))
    rejected = settings["undesirable_weight"] * (1 - F.sigmoid(beta * (kl - rejected)))
    return torch.cat([chosen, rejected]), kl


def metrics(settings, policy, reference, kl):
    """Return TRL's metrics."""
    rewards, good = settings["beta"] * (policy - reference), torch.tensor(RATINGS)
    if settings["loss"] == "kto":
        (chosen, rejected), (p_chosen, p_rejected) = (
            (values[0::2][good], values[0::2][~good]) for values in (rewards, policy)
        )
        more = {"kl": kl.item()}
    else:
        (chosen, rejected), (p_chosen, p_rejected) = ((v[0::2], v[1::2]) for v in (rewards, policy))
        more = {"rewards/accuracies": (chosen > rejected).double().mean().item()}
    return more | {
        "rewards/chosen": chosen.mean().item(),
        "rewards/rejected": rejected.mean().item(),
        "rewards/margins": (chosen.mean() - rejected.mean()).item(),
        "logps/chosen": p_chosen.mean().item(),
        "logps/rejected": p_rejected.mean().item(),
    }


def main():
    """Write the fixture."""
    torch.set_num_threads(1)
    weights = load_file(FIXTURES / "llama_like" / "model.safetensors")
    weights = {name: tensor.double().requires_grad_() for name, tensor in weights.items()}
    without = {name: tensor.detach() for name, tensor in weights.items()}
    without["blocks.1.feed_forward.down.weight"] = torch.zeros_like(without["blocks.1.feed_forward.down.weight"])
    samples = make_samples(5)
    counts = torch.tensor([token_count(sample) for sample in samples])
    reference = torch.stack([log_prob(without, sample) for sample in samples])
    cases, gradients = [], {}
    for name, settings in LOSSES.items():
        policy = torch.stack([log_prob(weights, sample) for sample in samples])
        kl = None
        if settings["loss"] == "kto":
            losses, kl = rated_losses(settings, policy, reference)
            assert kl > 0
        else:
            losses = pair_losses(settings, policy, reference, counts)
        loss = losses.mean()
        found = torch.autograd.grad(loss, [weights[parameter] for parameter in PARAMETERS])
        gradients |= {f"{name}.{parameter}": g.float() for parameter, g in zip(PARAMETERS, found)}
        expected = metrics(settings, policy.detach(), reference, kl)
        cases.append({"name": name, "settings": settings, "value": loss.item(), "metrics": expected})
    case = {
        "samples": samples, "ratings": RATINGS, "reference": reference.tolist(),
        "log_probs": policy.tolist(), "losses": cases,
    }  # fmt: skip
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "case.json").write_text(json.dumps(case) + "\n")
    save_file(gradients, FOLDER / "gradients.safetensors")


if __name__ == "__main__":
    main()
