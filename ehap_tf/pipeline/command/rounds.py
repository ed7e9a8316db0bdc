"""Pruning in several steps: remove a part, train a little, rank again."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import tf_keras

from ehap_tf import files
from ehap_tf.data import fitting_batch
from ehap_tf.models import clone_with_policy, load_model, save_model
from ehap_tf.models.precision import policy_of, resolve_precision
from ehap_tf.pipeline.command import recipes
from ehap_tf.pipeline.command.config import PipelineConfig
from ehap_tf.pipeline.command.job import Job
from ehap_tf.pipeline.command.ranking import rank_network, ranking_settings
from ehap_tf.pipeline.training import adaptation
from ehap_tf.pipeline.training.adaptation import adapting_data
from ehap_tf.pipeline.training.evaluation import accuracy
from ehap_tf.progress import no_progress
from ehap_tf.pruning import (
    PruningPlan,
    count_macs,
    count_parameters,
    plan_further,
    plan_on_slim,
    plan_pruning,
    prune,
)
from ehap_tf.sensitivity import FilterScores


@dataclasses.dataclass(frozen=True)
class Round:
    """Where stepwise pruning stands.

    Attributes:
        number: of steps done.
        model: the network, trained on unless this is the last step.
        plan: what is left of the network that everything started from.
        history: one dict of figures per step.
        before: at the last step the network before its removal.
        removal: at the last step the plan of `before` that made `model`.
    """

    number: int
    model: tf_keras.Model
    plan: PruningPlan
    history: tuple[dict[str, Any], ...] = ()
    before: tf_keras.Model | None = None
    removal: PruningPlan | None = None


def prune_in_steps(
    job: Job,
    fingerprint: str,
    model: tf_keras.Model,
    scores: FilterScores,
    amount: Mapping[str, float],
) -> Round:
    """Removes a part of the filters `prune_steps` times, with a little training in between.

    In the end `amount` of `model` is gone or left, as `plan_pruning` understands it.
    The first part goes by `scores`; before each further step the network of the moment is ranked
    again. After every step the network and the plan are kept with the checkpoints, so that a run
    that was killed goes on from the last whole step, and inside its training after the last whole
    epoch.

    Returns:
        The last step: its plan is one of `model`, its model is not trained after the last removal.
    """
    config = job.config
    folder = job.run.checkpoints("prune", fingerprint)
    whole = plan_pruning(model, scores, 0.0, residual=config.residual)
    state = _resume(job, folder, Round(0, model, whole))
    while state.number < config.prune_steps:
        number = state.number + 1
        if number > 1:
            scores = _ranked(job, state.model, number, folder)
        part = _part(amount, number / config.prune_steps)
        plan = plan_further(model, state.plan, scores, **part, **plan_options(config))
        removal = plan_on_slim(state.model, state.plan, plan)
        slim = prune(state.model, removal)
        figures: dict[str, Any] = {
            "step": number,
            "filters": sum(map(len, plan.kept.values())),
            "params": plan.params_after,
            "macs": plan.macs_after,
        }
        share = plan.params_after / plan.params_before
        job.console.say(
            f"prune: step {number} of {config.prune_steps}, {share:.1%} of the parameters left"
        )
        if number == config.prune_steps:
            return Round(number, slim, plan, (*state.history, figures), state.model, removal)
        slim = adapted(job, slim, state.model, removal, f"prune: repair {number}")
        figures["validation_accuracy"] = accuracy(slim, job.dataset.validation, job.dataset)
        slim = _train(job, slim, number, folder, figures)
        state = Round(number, slim, plan, (*state.history, figures))
        _keep(job, folder, state)
    return state


def adapted(
    job: Job, slim: tf_keras.Model, model: tf_keras.Model, plan: PruningPlan, title: str
) -> tf_keras.Model:
    """`prune(model, plan)` adapted to what it lost.

    Repaired on --repair_images images; with none its biases and BatchNorm's statistics are adapted,
    on --recalibrate_batches batches; with none of these either it stays as it is.
    """
    config = job.config
    images, count = min(config.repaired_images, len(job.dataset.train)), config.recalibrate_batches
    if not (images or count):
        return slim
    data = adapting_data(
        job.dataset, repair_images=images, seed=config.seed, order=config.seed,
        batch_size=fitting_batch(len(job.dataset.train), config.batch_size),
    )  # fmt: skip
    # Only a repair takes long.
    with job.console.progress(title, "layers") if images else contextlib.nullcontext() as progress:
        return adaptation.adapted(
            slim, model, plan, data, repair_images=images, seed=config.seed, batches=count,
            progress=progress or no_progress,
        )  # fmt: skip


def plan_options(config: PipelineConfig) -> dict[str, Any]:
    """The arguments of `plan_pruning` besides the amount and the residual mode."""
    return {
        "prune_ratio_limit": config.prune_ratio_limit,
        "implant_ratio": config.implant_ratio,
        "round_to": config.round_to,
        "cost_aware": config.cost_aware,
    }


def step_settings(config: PipelineConfig) -> dict[str, Any]:
    """What stepwise pruning depends on, besides the settings of pruning at once."""
    training = recipes.training_settings(config, "finetune") | {"epochs": config.prune_step_epochs}
    return {
        "prune_steps": config.prune_steps,
        **ranking_settings(config),
        **{f"step {name}": value for name, value in training.items()},
    }


def amount_of_rest(
    amount: Mapping[str, float], whole: tf_keras.Model, rest: tf_keras.Model
) -> dict[str, Any]:
    """What a target for `whole` means for `rest`, the same model without some of its blocks."""
    ((name, value),) = amount.items()
    if rest is whole or name in ("prune_ratio", "target_latency_ms"):
        return dict(amount)
    count = count_parameters if name == "target_params" else count_macs
    return {name: min(1.0, value * count(whole) / count(rest))}


def _part(amount: Mapping[str, float], part: float) -> dict[str, float]:
    """How much is gone after a part of the steps: equal parts of filters, parameters or MACs."""
    ((name, value),) = amount.items()
    return {name: value * part if name == "prune_ratio" else 1 - (1 - value) * part}


def _ranked(job: Job, model: tf_keras.Model, number: int, folder: pathlib.Path) -> FilterScores:
    path = folder / f"scores_{number}.npz"
    if path.exists():
        try:
            return FilterScores.load(path)
        except files.CorruptFileError as error:
            job.console.say(f"{error}; kept as {files.set_aside(path)}, made again", level=0)
    scores = rank_network(job, model, f"prune_{number}_rank")
    scores.save(path)
    return scores


def _train(
    job: Job, model: tf_keras.Model, number: int, folder: pathlib.Path, figures: dict[str, Any]
) -> tf_keras.Model:
    if not job.config.prune_step_epochs:
        return model
    name = f"prune_{number}"
    settings = recipes.training_settings(job.config, "finetune")
    settings["epochs"] = job.config.prune_step_epochs
    recipe = recipes.recipe_of(job, name, settings)
    policy = policy_of(resolve_precision(settings["train_precision"]))
    trained = clone_with_policy(model, policy)
    result = recipes.fit_with_progress(job, trained, recipe, name, folder / f"training_{number}")
    figures["trained_validation_accuracy"] = result.best_accuracy
    return clone_with_policy(trained, "float32")


def _keep(job: Job, folder: pathlib.Path, state: Round) -> None:
    save_model(state.model, folder / f"model_{state.number}.keras")
    # Written last: it says that the step is whole.
    content = {"plan": state.plan.to_json(), "history": list(state.history)}
    job.run.write_json(folder / f"round_{state.number}.json", content)


def _resume(job: Job, folder: pathlib.Path, start: Round) -> Round:
    """The last whole step that can be read back."""
    for number in range(job.config.prune_steps - 1, 0, -1):
        path, model = folder / f"round_{number}.json", folder / f"model_{number}.keras"
        if not (path.exists() and model.exists()):
            continue
        try:
            content = job.run.read_json(path)
            plan = PruningPlan.from_json(content["plan"])
            state = Round(number, load_model(model), plan, tuple(content["history"]))
        except (ValueError, KeyError) as error:
            kept = [files.set_aside(damaged) for damaged in (path, model)]
            job.console.say(f"{error}; kept as {kept[0]} and {kept[1]}, made again", level=0)
            continue
        job.console.say(f"prune: goes on after step {number} of {job.config.prune_steps}")
        return state
    return start
