"""Optimisers, assembled from optax."""

import optax


def adam_coupled_l2(
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: float = 5e-4,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Adam with L2 added to the gradient before the moments: ``torch.optim.Adam(weight_decay=…)``.

    This is DF40's and R²M's optimiser (lr 1e-5, weight decay 5e-4 on every parameter; DF40
    ``training/config/detector/clip.yaml``, R²M appendix B.2), not AdamW, which decays after the moments.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.scale_by_learning_rate(learning_rate),
    )


def warmup_cosine(peak: float, steps: int, warmup_share: float = 0.1) -> optax.Schedule:
    """Linear warm-up over ``warmup_share`` of the steps, then a cosine to zero."""
    warmup = max(1, round(steps * warmup_share))
    return optax.schedules.warmup_cosine_decay_schedule(0.0, peak, warmup, max(steps, warmup + 1), 0.0)
