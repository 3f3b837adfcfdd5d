"""Every technique of arXiv 2504.21066 on one detector: what is kept of it, on learnt generators and on new ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from r2m_jax.evaluation.plots import pareto
from r2m_jax.models.convolutional.plan import Place
from r2m_jax.studies.compression.bench import SOURCE, Course, Made, Workbench
from r2m_jax.studies.compression.comparing import (
    LEARNT,
    MET,
    NEW,
    NOT_MET,
    Finding,
    Weight,
    as_json,
    compare_networks,
    decisions,
    gap,
    judged,
    summary,
    weigh,
    worded,
)
from r2m_jax.studies.measuring import Measured
from r2m_jax.studies.result import Figure, Result

BASELINE, QUANTISED, TUNED, TUNED_QUANTISED = "BL", "CQ", "TL+FT", "TL+FT+Q"
HERE, BEFORE = "Trained on the images at hand", "Transferred from other images"
NAME = "compression"
SAME_LEVEL = 0.02
"""Loss of AUC up to which two are called alike."""
LEAST = 0.65
"""AUC of a baseline that has learnt something."""


def techniques(context: Workbench) -> Result:
    """Baseline, CPF, CKD, CQ, TL+FT, TL+FT+Q, TL+KD+A and TL+P+A at every rate."""
    groups = _networks(context)
    networks = {name: made for members in groups.values() for name, made in members.items()}
    found = compare_networks(context, networks, NAME)
    shown = {group: list(members) for group, members in groups.items()}
    decided = decisions(found, context, list(networks))
    with context.reporter.track("weigh and time", len(networks)) as advance:
        weights = {}
        for name, made in networks.items():
            weights[name] = weigh(context, made)
            advance()
    caption = "Means over seeds, with the interval of the mean beside; every generator against the same real images."
    tables = {
        NAME: found.as_table("AUC", shown, caption),
        f"{NAME}_summary": summary("Networks", shown, decided, weights),
    }
    fewer = [
        f"{student.name}: {1 - weights[_ckd(student.name)].parameters / weights[BASELINE].parameters:.0%}"
        for student in sorted(context.recipe.students, key=lambda student: student.rate)
    ]
    context.note(
        f"At {context.recipe.data.image_size} pixels students have so many parameters fewer than {BASELINE}: "
        f"{', '.join(fewer)}; the first linear layer grows with the image, so that other sizes give other shares."
    )
    findings = _findings(context, found.measured, weights)
    if (reached := _mean(found.measured, BASELINE, LEARNT)) < LEAST:
        context.note(
            f"{BASELINE} itself reaches {reached:.3f} on learnt generators: what compression costs says little."
        )
    metrics = {
        **found.as_json(), "weights": as_json(weights), "decisions": decided,
        "findings": [vars(finding) for finding in findings],
    }  # fmt: skip
    return Result(
        [finding.sentence() for finding in findings], tables, _figures(found.measured, networks, weights),
        {NAME: found.table}, metrics,
    )  # fmt: skip


def baseline(context: Workbench) -> Course:
    """The network that is compressed."""
    return Course("baseline", context.plan(context.recipe.baseline))


def source_network(context: Workbench) -> Course:
    """The same, taught by the images before."""
    return Course("source", context.plan(context.recipe.baseline), learns=SOURCE)


def pruned_source(context: Workbench, rate: float) -> Course:
    """That one pruned and tuned on the images before."""
    start = source_network(context)
    return Course(f"source pruned {rate:g}", start.plan, start, prune=rate, learns=SOURCE, pace="tuning")


def source_student(context: Workbench, number: int) -> Course:
    """A student that it taught."""
    student = context.recipe.students[number]
    name = f"source student {student.name}"
    return Course(name, context.plan(student.network), learns=SOURCE, teacher=source_network(context))


def _networks(context: Workbench) -> dict[str, dict[str, Made]]:
    recipe, whole = context.recipe, baseline(context)
    here = {BASELINE: Made(whole)}
    for rate in recipe.rates:
        here[_cpf(rate)] = Made(Course(f"pruned {rate:g}", whole.plan, whole, prune=rate, pace="tuning"))
    students = sorted(recipe.students, key=lambda student: student.rate)
    for student in students:
        plan = context.plan(student.network)
        here[_ckd(student.name)] = Made(Course(f"student {student.name}", plan, teacher=whole))
        if recipe.alone:
            here[_alone(student.name)] = Made(Course(f"alone {student.name}", plan))
    here[QUANTISED] = Made(whole, int8=True)
    groups = {HERE: here}
    if context.source is None:
        context.note("TL+FT, TL+KD+A and TL+P+A are left out: give data.source or data.source_methods.")
        return groups
    before = source_network(context)
    tuned = Course("tuned", before.plan, before, new_head=True, trained="last", pace="transfer")
    there = {TUNED: Made(tuned), TUNED_QUANTISED: Made(tuned, int8=True)}
    for student in students:
        there[_adapted(student.name)] = Made(
            adapted(source_student(context, recipe.students.index(student)), recipe.adapters.student, context)
        )
    for rate in recipe.rates:
        there[_tlpa(rate)] = Made(adapted(pruned_source(context, rate), recipe.adapters.deep, context))
    return groups | {BEFORE: there}


def adapted(start: Course, place: Place, context: Workbench) -> Course:
    """A frozen network with an adapter that learns from the images at hand."""
    return Course(
        f"{start.name} adapter {place}", start.plan, start, adapter=place,
        residual=context.recipe.adapters.residual, trained="adapter", pace="transfer",
    )  # fmt: skip


def _cpf(rate: float) -> str:
    return f"CPF {rate:.0%}"


def _ckd(name: str) -> str:
    return f"CKD {name}"


def _alone(name: str) -> str:
    return f"{name} without a teacher"


def _adapted(name: str) -> str:
    return f"TL+KD+A {name}"


def _tlpa(rate: float) -> str:
    return f"TL+P+A {rate:.0%}"


def _findings(context: Workbench, measured: Measured, weights: Mapping[str, Weight]) -> list[Finding]:
    recipe = context.recipe
    students = {student.rate: _ckd(student.name) for student in recipe.students}
    rates, most = recipe.rates, recipe.rates[-1]
    found = [
        judged(
            "on the same generator distillation is level with pruning or ahead",
            "CKD minus CPF over all rates",
            gap(measured, [students[rate] for rate in rates], [_cpf(rate) for rate in rates], LEARNT),
        )
    ]
    for rate in rates:
        ahead = rate < most or len(rates) == 1
        found.append(
            judged(
                f"on other generators pruning is {'ahead' if ahead else 'behind at the highest rate'}",
                f"CPF minus CKD at {rate:.0%}", gap(measured, [_cpf(rate)], [students[rate]], NEW), above=ahead,
            )
        )  # fmt: skip
    for name in (_cpf(most), students[most]):
        lost = gap(measured, [name], [BASELINE], LEARNT)
        found.append(
            Finding(
                f"up to {most:.0%} the same generator's images are told as well as by the baseline",
                worded(f"{name} minus {BASELINE}", lost),
                MET if lost[0] >= -SAME_LEVEL else NOT_MET,
            )
        )
    means = {name: _mean(measured, name, LEARNT) for name in (BASELINE, *students.values())}
    better = [name for name in students.values() if means[name] > means[BASELINE]]
    numbers = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    found.append(Finding("some students beat their teacher on the same generator", numbers, MET if better else NOT_MET))
    told = {group: _mean(measured, BASELINE, group) for group in (LEARNT, NEW)}
    found.append(
        Finding(
            "all lose much on generators that were not learnt",
            f"{BASELINE} {told[LEARNT]:.3f} on learnt and {told[NEW]:.3f} on new ones",
            MET if told[NEW] < told[LEARNT] - SAME_LEVEL else NOT_MET,
        )
    )
    if recipe.alone:
        found.append(
            judged(
                "", "CKD minus the same students without a teacher, on learnt generators",
                gap(measured, list(students.values()), [_alone(s.name) for s in recipe.students], LEARNT),
            )
        )  # fmt: skip
    return [*found, _speed(weights)]


def _speed(weights: Mapping[str, Weight]) -> Finding:
    ratios = [
        (one.batch, two.median / one.median)
        for one, two in zip(weights[BASELINE].latency, weights[QUANTISED].latency, strict=True)
    ]
    text = ", ".join(f"{ratio:.2f} of the time at batch {batch}" for batch, ratio in ratios)
    faster = all(ratio < 1 - 5 * SAME_LEVEL for _, ratio in ratios)
    return Finding("int8 linear layers are not faster on GPUs", f"{text}, on this device", NOT_MET if faster else MET)


def _mean(measured: Measured, name: str, group: str) -> float:
    inside = [column for column, each in zip(measured.columns, measured.groups, strict=True) if each == group]
    return measured.mean(name, inside)


def _figures(measured: Measured, networks: Mapping[str, Made], weights: Mapping[str, Weight]) -> dict[str, Figure]:
    names: Sequence[str] = [name for name in networks if not name.endswith("without a teacher")]
    sizes = [weights[name].stored.zipped / 1e6 for name in names]
    figures = {}
    for group, words in ((LEARNT, "generators that were learnt"), (NEW, "new generators")):
        svg = pareto(
            names, sizes, [_mean(measured, name, group) for name in names], title=f"Size and AUC on {words}",
            labels=("MB zipped (lower is better)", "mean AUC (higher is better)"), log_x=True,
        )  # fmt: skip
        caption = "Filled markers are beaten by no network in both size and AUC; means over seeds."
        figures[f"{NAME}_{group}"] = Figure(svg, caption)
    return figures
