"""What a sweep found: trials grouped over seeds and orders, the best configuration, a table and the Pareto picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.statistics.mean_std import MeanStd
from components.tuning.objective import DIRECTIONS, Objective, pareto_front
from components.tuning.space import Values, without
from components.tuning.trials import Figures, Trial

if TYPE_CHECKING:
    from PIL.Image import Image

SEED, ORDER = "seed", "stream.order"
REPEATED = (SEED,)  # fields whose values repeat a setting
MOST_LABELS = 12  # names of more settings than that would cover each other


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Trials of the same values but the seed, and the order where orders repeat a setting."""

    name: str
    values: Values  # without those
    trials: tuple[Trial, ...]

    @property
    def whole(self) -> bool:
        """Whether every trial ran to the end of the stream: only then figures are comparable."""
        return all(trial.state == "finished" for trial in self.trials)

    @property
    def means(self) -> Figures:
        """Means over the trials of the figures that all have."""
        names = set.intersection(*(set(trial.figures) for trial in self.trials))
        return {name: statistics.fmean(trial.figures[name] for trial in self.trials) for name in sorted(names)}

    def spread(self, figure: str) -> str:
        """Mean and sample standard deviation over the trials, or nothing where one lacks the figure."""
        values = [trial.figures[figure] for trial in self.trials if figure in trial.figures]
        return str(MeanStd.of(values)) if len(values) == len(self.trials) else ""


def settings_of(trials: Sequence[Trial], repeated: Sequence[str] = REPEATED) -> list[Setting]:
    """The settings in the order in which their first trial was begun; values of `repeated` fields do not make one."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(repr(without(trial.values, repeated)), []).append(trial)
    found: list[Setting] = []
    for group in groups.values():
        values = without(group[0].values, repeated)
        name = ", ".join(f"{field.rpartition('.')[2]} {value}" for field, value in values.items())
        found.append(Setting(name=name or group[0].name, values=values, trials=tuple(group)))
    return found


def best_of(settings: Sequence[Setting], objective: Objective) -> Setting | None:
    """The whole setting with the best mean; the first of equals; None when none is whole or has the figure."""
    able = [setting for setting in settings if setting.whole and objective.name in setting.means]
    return max(able, key=lambda setting: objective.worth(setting.means), default=None)


def tied_with(settings: Sequence[Setting], best: Setting, objective: Objective) -> list[Setting]:
    """Other whole settings whose mean is the best one's, in the decimals that the table shows."""
    able = [setting for setting in settings if setting.whole and objective.name in setting.means]
    shown = f"{best.means[objective.name]:.1f}"
    return [setting for setting in able if setting is not best and f"{setting.means[objective.name]:.1f}" == shown]


def verdict(settings: Sequence[Setting], best: Setting, objective: Objective, rows: str) -> str:
    """One sentence: which setting is the best by the scores of which `rows`, or that several are tied."""
    by = f"by {objective.name} on {rows} rows"
    value = f"{best.means[objective.name]:.1f}"
    tied = tied_with(settings, best, objective)
    if not tied:
        return f"Best {by}: {best.name} ({value})"
    names = "; ".join(one.name for one in (best, *tied))
    return f"A tie {by}, all at {value}: {names}. The one that is kept is {best.name}."


def front_of(settings: Sequence[Setting], objectives: tuple[Objective, ...]) -> list[Setting]:
    """Whole settings that no other one beats in all objectives."""
    names = [objective.name for objective in objectives]
    figures = {
        setting.name: setting.means for setting in settings if setting.whole and all(n in setting.means for n in names)
    }
    front = set(pareto_front(figures, objectives))
    return [setting for setting in settings if setting.name in front]


def table(settings: Sequence[Setting], objectives: tuple[Objective, ...]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: one setting a line, the best first; settings that are not whole come last and say why."""
    fields = list(dict.fromkeys(field for setting in settings for field in setting.values))
    figures = list(dict.fromkeys([*(each.name for each in objectives), "final_average", "forgetting"]))
    header = [*fields, *figures, "trainable", "training", "trials"]
    first = objectives[0]

    def place(setting: Setting) -> tuple[bool, float]:
        return not setting.whole, -first.worth({first.name: 0.0} | setting.means)

    front = {setting.name for setting in front_of(settings, objectives)} if len(objectives) > 1 else set()
    lines: list[list[str]] = []
    for setting in sorted(settings, key=place):
        means = setting.means
        lines.append(
            [
                *(str(setting.values.get(field, "")) for field in fields),
                *(setting.spread(figure) for figure in figures),
                f"{int(means['trainable_parameters']):,}" if "trainable_parameters" in means else "",
                f"{means['train_s'] / 60:.1f} min" if "train_s" in means else "",
                _states(setting) + (", Pareto front" if setting.name in front else ""),
            ]
        )
    return header, lines


def _states(setting: Setting) -> str:
    """`3 finished`, or what else became of the trials."""
    texts: list[str] = []
    for trial in setting.trials:
        after = f" after {trial.learned} tasks" if trial.state in ("stopped", "unfinished") else ""
        texts.append(f"{trial.state}{after}" + (f" ({trial.reason})" if trial.reason else ""))
    counted = {text: texts.count(text) for text in texts}
    return ", ".join(f"{times} {text}" if times > 1 or len(counted) > 1 else text for text, times in counted.items())


def draw_pareto(settings: Sequence[Setting], objectives: tuple[Objective, ...]) -> Image | None:
    """The first two objectives, or the only one against trainable parameters; colour is forgetting, the front joined.

    Of more than `MOST_LABELS` settings only the front is named. None when no whole setting has both figures.
    """
    from matplotlib.figure import Figure

    from components.evaluation.heatmap import image_of

    up = objectives[0]
    along = objectives[1] if len(objectives) > 1 else _other_than(up)
    able = [each for each in settings if each.whole and along.name in each.means and up.name in each.means]
    if not able:
        return None
    figure = Figure(figsize=(7.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    xs, ys = ([each.means[goal.name] for each in able] for goal in (along, up))
    front = sorted((each.means[along.name], each.means[up.name]) for each in front_of(able, (up, along)))
    axes.step(  # between two settings nothing better is known than the one that takes less
        *zip(*front, strict=True),
        where="post" if along.mode == "min" else "pre",
        color="#cc6677",
        linewidth=1.5,
        label="Pareto front",
        zorder=1,
    )
    forgotten = [each.means.get("forgetting", 0.0) for each in able]
    dots = axes.scatter(
        xs,
        ys,
        s=90,
        c=forgotten,
        cmap="viridis_r",
        vmin=min(0.0, *forgotten),
        vmax=max(1.0, *forgotten),
        edgecolors="black",
        linewidths=0.6,
        zorder=2,
    )
    figure.colorbar(dots, label="forgetting")
    for each, x, y in zip(able, xs, ys, strict=True):
        if len(able) <= MOST_LABELS or (x, y) in front:
            axes.annotate(each.name, (x, y), xytext=(0, 8), textcoords="offset points", fontsize=8, ha="center")
    for goal, label in ((along, axes.set_xlabel), (up, axes.set_ylabel)):
        label(f"{goal.name.replace('_', ' ')} ({'higher' if goal.mode == 'max' else 'lower'} is better)")
    axes.margins(x=0.3, y=0.15)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper left", frameon=False)
    return image_of(figure)


def _other_than(objective: Objective) -> Objective:
    """What a single objective is drawn against."""
    name = "trainable_parameters" if objective.name != "trainable_parameters" else "final_average"
    return Objective(name=name, mode=DIRECTIONS[name])
