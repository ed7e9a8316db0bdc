"""What counts: accuracy after many filters are removed together, by criterion, without training.

Growing shares of the filters (or of the multiply-accumulates) go, in one shot or ranked anew on the
way, and accuracy is measured on validation images right after, again once BatchNorm's statistics
are re-estimated on training images, and in the mode `repaired` once kernels are solved again
(`repair`). Test images are not looked at: criteria are chosen by this table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tf_keras
from matplotlib.figure import Figure

from ehap_tf.benchmark.measuring import output
from ehap_tf.benchmark.measuring.contenders import (
    Clock,
    RefusedError,
    add_contender_arguments,
    line_look,
    rank,
    require_criteria,
    with_reasons,
)
from ehap_tf.benchmark.measuring.records import Records, Row, add_records_argument, beside, digest
from ehap_tf.benchmark.measuring.subject import (
    add_subject_arguments,
    load_images,
    some_arrays,
    trained_source,
)
from ehap_tf.benchmark.ranking.gated_model import GatedModel
from ehap_tf.criteria import find_criterion
from ehap_tf.data import sample_arrays, training_batches
from ehap_tf.pruning import PruningPlan, plan_pruning, prune, repair
from ehap_tf.sensitivity import FilterScores

MODES = ("one_shot", "repaired", "steps", "recalibrated_steps")
STEPWISE = ("steps", "recalibrated_steps")
AMOUNTS = {"filters": "prune_ratio", "macs": "target_macs"}
ACCURACIES = {
    "accuracy": "right after",
    "recalibrated_accuracy": "BatchNorm re-estimated",
    "repaired_accuracy": "repaired",
}
COLUMNS = {
    "criterion": "criterion",
    "mode": "mode",
    "removed": "removed",
    "filters_left": "filters left",
    "macs_left": "MACs left",
    "accuracy": "accuracy",
    "recalibrated_accuracy": "BatchNorm re-estimated",
    "repaired_accuracy": "repaired",
    "repair_seconds": "repair, seconds",
    "rank_seconds": "ranking, seconds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this benchmark."""
    add_subject_arguments(parser, examples=512)
    add_contender_arguments(parser)
    parser.add_argument(
        "--by", choices=sorted(AMOUNTS), default="filters", help="what is removed; default filters"
    )
    parser.add_argument(
        "--amounts",
        nargs="+",
        type=float,
        default=[0.1, 0.2, 0.3, 0.4, 0.6],
        help="shares removed; default 0.1 0.2 0.3 0.4 0.6",
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=["one_shot"],
        help="one_shot; repaired: one_shot, and repaired by least squares as well; steps: ranked "
        "anew after every --step; recalibrated_steps: with BatchNorm re-estimated before each "
        "ranking; default one_shot",
    )
    parser.add_argument(
        "--step", type=float, default=0.1, help="share between two rankings; default 0.1"
    )
    parser.add_argument("--residual", default="union", help="union or tied; default union")
    parser.add_argument(
        "--cost_aware", default=None, help="macs or params: scores count per cost; default no"
    )
    parser.add_argument(
        "--validation_images", type=int, default=0, help="how many; default 0, for all of them"
    )
    parser.add_argument(
        "--recalibrate_batches",
        type=int,
        default=32,
        help="of 128 training images; 0 re-estimates nothing; default 32",
    )
    parser.add_argument(
        "--repair_images",
        type=int,
        default=512,
        help="training images of the mode repaired; default 512",
    )
    output.add_output_arguments(parser)
    add_records_argument(parser)


def run(options: argparse.Namespace) -> None:
    """Measures what is not yet measured, prints the table, writes what --output asks for.

    A criterion that cannot rank the network is left out, and the table says why.
    """
    _check(options)
    subject = Subject(options)
    rows = [subject.whole()]
    cells = [(mode, name) for mode in options.modes for name in options.criteria]
    clock = Clock(len(cells))
    for mode, criterion in cells:
        if mode in STEPWISE and not find_criterion(criterion).needs_data:
            clock.tick(f"{criterion}: looks at no data, so that ranking anew changes nothing")
            continue
        try:
            for row in subject.path(mode, criterion):
                rows.append(row)
            clock.tick(f"{criterion}, {mode}")
        except RefusedError as error:
            rows.append({"criterion": criterion, "mode": mode, "refused": str(error)})
            clock.tick(f"{criterion}, {mode}: refused: {error}")
    title = f"Accuracy on {subject.images} validation images"
    output.show(title, rows, with_reasons(COLUMNS, rows))
    output.save(options, "removal", rows, plot(rows), table(rows), subject.digest)


def _check(options: argparse.Namespace) -> None:
    require_criteria(options.criteria)
    if options.recalibrate_batches < 0:
        raise ValueError(
            "--recalibrate_batches must be at least 0. Received: "
            f"--recalibrate_batches={options.recalibrate_batches}"
        )
    if "recalibrated_steps" in options.modes and not options.recalibrate_batches:
        raise ValueError(
            "--recalibrate_batches must be above 0 for the mode recalibrated_steps. Received: "
            "--recalibrate_batches=0; the mode steps re-estimates nothing"
        )
    if options.repair_images < 1:
        raise ValueError(
            f"--repair_images must be at least 1. Received: --repair_images={options.repair_images}"
        )
    if set(STEPWISE) & set(options.modes) and not options.step > 0:
        raise ValueError(f"--step must be above 0. Received: --step={options.step:g}")


class Subject:
    """The network under the knife, its data, and what was measured before."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        model, dataset, self._loss = load_images(
            options.model, options.dataset, options.data_dir, options.seed
        )
        self._model, self._dataset = model, dataset
        self._sample = sample_arrays(dataset, options.examples, options.seed)
        self._images, self._labels = some_arrays(
            dataset, dataset.validation, options.validation_images
        )
        self.images = len(self._labels)
        self._gated: GatedModel | None = None
        # The same images for everybody: the training stream of seed 0.
        stream = training_batches(dataset, min(128, len(dataset.train)), seed=0, epochs=1_000)
        self._calibration = stream.take(options.recalibrate_batches).cache()
        self.digest = digest(trained_source(options.model, options.dataset), options.seed)
        settings = {"model": self.digest, "validation_images": self.images}
        names = ("dataset", "examples", "probes", "seed", "recalibrate_batches", "residual")
        settings |= {name: getattr(options, name) for name in names}
        self._records = Records(beside(options.output, options.records), settings, options.rankings)

    @property
    def gated(self) -> GatedModel:
        """Built when something has to be measured."""
        if self._gated is None:
            self._gated = GatedModel(self._model, self._options.residual)
        return self._gated

    def whole(self) -> Row:
        """The accuracy of the whole network."""
        scores = rank_nothing(self._model)
        plan = plan_pruning(self._model, scores, 0.0, residual=self._options.residual)
        return self._measured("whole", "", 0.0, plan, 0.0, "")

    def path(self, mode: str, criterion: str) -> Iterator[Row]:
        """The rows of one criterion, for growing amounts."""
        options = self._options
        scores = self._rank(criterion)
        seconds = scores.seconds
        label = f"{mode}_{options.by}"
        if options.cost_aware:
            label += f"_per_{options.cost_aware}"
        if mode == "repaired":
            label += f"_{options.repair_images}_images"
        if mode in STEPWISE:
            label += f"_step_{options.step:g}"
        amounts = sorted(set(options.amounts))
        whole_steps: list[float] = []
        if mode in STEPWISE:
            steps = np.arange(options.step, amounts[-1], options.step).round(6).tolist()
            whole_steps = [step for step in steps if step < amounts[-1]]
        for stop in sorted({*amounts, *whole_steps}):
            plan = self._plan(scores, stop)
            if stop in amounts:
                yield self._measured(criterion, mode, stop, plan, seconds, label)
            # At whole steps alone, so that no amount depends on which others are measured.
            if stop in whole_steps:
                name = (
                    f"{criterion}_{label}_from_{stop:g}_{options.examples}_{options.probes}_probes"
                )
                scores = self._rank_anew(criterion, f"{name}_seed{options.seed}", plan, mode)
                seconds += scores.seconds

    def _rank(self, criterion: str) -> FilterScores:
        seed = self._options.seed
        return rank(
            self._records, self._model, self._sample, self._loss, criterion, self._options, seed
        )

    def _rank_anew(
        self, criterion: str, name: str, removed: PruningPlan, mode: str
    ) -> FilterScores:
        """The scores in the network that lost filters; the lost ones stay last."""
        if not self._records.ranking(name).exists():
            self.gated.keep(removed.flags())
            if mode == "recalibrated_steps":
                self._recalibrate()
            model = self.gated.model
        else:
            model = self._model  # not looked at: the scores are there
        seed = self._options.seed
        scores = rank(
            self._records, model, self._sample, self._loss, criterion, self._options, seed, name
        )
        return below_all_others(scores, removed.flags())

    def _plan(self, scores: FilterScores, amount: float) -> PruningPlan:
        kept = amount if self._options.by == "filters" else 1 - amount
        return plan_pruning(
            self._model,
            scores,
            **{AMOUNTS[self._options.by]: kept},  # type: ignore[arg-type]
            residual=self._options.residual,
            cost_aware=self._options.cost_aware,
        )

    def _recalibrate(self) -> None:
        self.gated.recalibrate([images for images, _ in self._calibration])

    def _repaired(self, plan: PruningPlan) -> Row:
        """The accuracy after `repair`, and the seconds that it took."""
        options = self._options
        images, _ = sample_arrays(self._dataset, options.repair_images, options.seed)
        slim = prune(self._model, plan)
        began = time.monotonic()
        slim = repair(slim, self._model, plan, images, len(images), seed=options.seed)
        seconds = time.monotonic() - began
        guesses = slim.predict(self._images, batch_size=250, verbose=0).argmax(-1)
        accuracy = float((guesses == self._labels).mean())
        return {"repaired_accuracy": accuracy, "repair_seconds": seconds}

    def _measured(
        self,
        criterion: str,
        mode: str,
        amount: float,
        plan: PruningPlan,
        seconds: float,
        label: str,
    ) -> Row:
        def measure() -> Row:
            flags = plan.flags()
            self.gated.keep(flags)
            accuracies = {"accuracy": self.gated.accuracy(self._images, self._labels)}
            if self._options.recalibrate_batches:
                self._recalibrate()
                again = self.gated.accuracy(self._images, self._labels)
                accuracies["recalibrated_accuracy"] = again
            if mode == "repaired":
                accuracies |= self._repaired(plan)
            total = sum(len(stays) for stays in flags.values())
            return {
                "criterion": criterion,
                "mode": mode,
                "removed": amount,
                "filters_left": sum(int(stays.sum()) for stays in flags.values()) / total,
                "macs_left": plan.macs_after / plan.macs_before,
                "params_left": plan.params_after / plan.params_before,
                **accuracies,
                "rank_seconds": seconds,
            }

        return self._records.row(f"{criterion}_{label}_{amount:g}", measure)


def rank_nothing(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """A score for every filter, for a plan that removes none."""
    from ehap_tf.sensitivity.network.filters import find_prunable

    return {layer.name: np.ones(layer.filters) for layer in find_prunable(model)}


def below_all_others(scores: FilterScores, flags: dict[str, np.ndarray]) -> FilterScores:
    """The scores with those of removed filters lower than any other."""
    # Also as sums over what goes together, and divided by costs.
    lowest = -1e15 * (1 + sum(float(np.abs(values).sum()) for values in scores.values()))
    values = {name: np.where(flags[name], scores[name], lowest) for name in scores}
    return FilterScores(values, scores.provenance)


def table(rows: Sequence[Row]) -> str:
    """A line per criterion and mode: per cent right after / re-estimated (share of MACs left)."""
    rest = [row for row in rows if row["criterion"] != "whole"]
    amounts = sorted({row["removed"] for row in rest if "removed" in row})
    lines: dict[tuple[str, str], Row] = {}
    for row in rest:
        line = lines.setdefault(
            (row["criterion"], row["mode"]),
            {"criterion": f"`{row['criterion']}`", "mode": row["mode"].replace("_", " ")},
        )
        if "refused" in row:
            line["refused"] = row["refused"]
            continue
        accuracies = [row[key] for key in ACCURACIES if key in row]
        figures = " / ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies)
        line[f"{row['removed']:g}"] = f"{figures} ({row['macs_left']:.2f})"
        line["seconds"] = row["rank_seconds"]
    columns = {"criterion": "criterion", "mode": "mode"}
    columns |= {f"{amount:g}": f"{amount:.0%} removed" for amount in amounts}
    columns |= {"seconds": "ranking, seconds"}
    return output.markdown(list(lines.values()), with_reasons(columns, rest))


def plot(rows: Sequence[Row]) -> Figure:
    """Accuracy against MACs left, before and after BatchNorm is re-estimated."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    whole, *rest = [row for row in rows if "refused" not in row]
    names = list(dict.fromkeys(row["criterion"] for row in rest))
    titles = {k: title for k, title in ACCURACIES.items() if any(k in row for row in rows)}
    panels = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for mode, style in zip(MODES, ("-", "-.", "--", ":"), strict=True):
            for number, name in enumerate(names):
                mine = [row for row in rest if (row["criterion"], row["mode"]) == (name, mode)]
                points = [row for row in mine if key in row]
                if not points:
                    continue
                points = sorted([whole, *points], key=lambda row: -row["macs_left"])
                axes.plot(
                    [row["macs_left"] for row in points],
                    [row.get(key, row["accuracy"]) for row in points],
                    linestyle=style,
                    **line_look(number),
                    label=name if mode == "one_shot" else f"{name}, {mode}",
                )
        axes.set_title(title)
        axes.set_xlabel("share of the multiply-accumulates left")
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy on validation images")
    panels[-1].legend(fontsize=7)
    return figure
