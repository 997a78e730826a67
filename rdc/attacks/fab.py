"""FAB: the nearest misclassified image, by steps to the linearised decision boundary that stay close to the original.

Croce & Hein 2020 (arXiv 1907.02044). Let y be the label, t another class, f = z_t - z_y, x the original image, x_i the
iterate and P(v) the nearest point to v of {z in [0, 1] : f(x_i) + <grad f(x_i), z - x_i> = 0} in the norm of the threat
model (rdc.attacks.hyperplanes), s_i = P(x_i) - x_i, s_o = P(x) - x. Then

    alpha   = min(||s_i|| / (||s_i|| + ||s_o||), alpha_max),                          alpha_max = 0.1
    x_(i+1) = clip( (1 - alpha) (x_i + eta s_i) + alpha (x + eta s_o) )               eta = 1.05
    if x_(i+1) is misclassified: remember it if it is the nearest; x_(i+1) = (1 - beta) x + beta x_(i+1)    beta = 0.9

Targeted, t is fixed for a run; untargeted, it is the class whose plane is nearest, |f| / ||grad f||_dual, which takes a
gradient for every class. At a run's end, the segment from x to the nearest misclassified point is searched for the
boundary: three steps to where f, read as linear between the ends of the bracket, crosses zero, and a tenth of the rest
further. That segment is the shortest way only where the box stops no pixel (else 0.1 to 0.2 % too long on linear
models), so, and this is ours, one more point is tried: P(x) of the plane at the nearest point, a ten-thousandth beyond.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from rdc.attacks.entry import attack
from rdc.attacks.hyperplanes import dual_norm, step_to_hyperplane
from rdc.attacks.losses import Evaluation, Model, Objective
from rdc.attacks.options import SteppedOptions, integer
from rdc.attacks.targeted import TARGETS, TargetedObjective
from rdc.attacks.threat_model import AttackRecord, AttackResult, ThreatModel, check_images
from rdc.norm_balls import distance, project, random_start, row_sum

__all__ = ["FabOptions", "fab"]

ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9
SEARCH_STEPS, BEYOND = 3, 1e-4


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FabOptions(SteppedOptions):
    """Options of :func:`fab`.

    Args:
        steps: of each run, >= 1.
        restarts: >= 1; targeted, each has one run for every target.
        targets: so many of the highest wrong classes of the clean image, >= 1; None: untargeted.
        minimize: go on with broken images, for the smallest distance; else an image leaves once it is broken.
    """

    targets: int | None = integer(TARGETS, least=None, most=1_000_000)
    minimize: bool = False


@attack(FabOptions)
def fab(model: Model, x: Tensor, y: Tensor, threat: ThreatModel, options: FabOptions) -> AttackResult:
    """Fast adaptive boundary attack, targeted or not: broken is what has a misclassified image within eps.

    Restart 0 begins at the image itself, later ones at a random point at half the distance found so far (at most
    eps / 2).

    Args:
        model: pixels [n, C, H, W] in [0, 1] -> logits [n, K]; each row depends on its own image only; in eval mode.
        x: [N, C, H, W] float32 in [0, 1].
        y: [N] int64 true labels.
        threat: norm and radius.
        options: FabOptions; a call gives its fields as keywords.

    Returns:
        AttackResult; ``minimal_distance`` is filled in; losses are margins (rdc.attacks.losses). For robust images x_adv
        is the nearest misclassified point, drawn back into the budget.

    Raises:
        InputError: an argument is not as above. RdcError: a budget was broken.

    Source: Croce & Hein 2020 (arXiv 1907.02044), Algorithm 1; see the module docstring.
    """
    ids = check_images(x, y, options.image_ids)
    x, y = x.detach(), y.to(x.device)
    most = 2**62 if options.targets is None else options.targets
    planes = TargetedObjective(model, "margin", targets=most, **options.scoring)
    search = _Search(planes, x, y, threat, untargeted=options.targets is None, minimize=options.minimize)
    search.attack(ids, options)
    return search.result(options)


class _Search:
    """The attack on N images; ``nearest`` holds what is found."""

    def __init__(
        self, planes: TargetedObjective, x: Tensor, y: Tensor, threat: ThreatModel, *, untargeted: bool, minimize: bool
    ) -> None:
        self.planes, self.x, self.y, self.threat, self.untargeted = planes, x, y, threat, untargeted
        self.judge = Objective(planes.model, "margin", eot=planes.eot, redraw=planes.redraw)
        *clean, self.about = planes.start(x, y)
        self.record = AttackRecord(x, *clean)
        self.stay = minimize or planes.is_random
        self.runs = 1 if untargeted else planes.runs
        self.nearest = torch.where(self.record.clean_correct, math.inf, 0.0).double()  # [N]
        self.nearest_point, self.nearest_loss = x.clone(), torch.zeros_like(self.nearest)
        self.name = "fab" if untargeted else "fab-t"

    def attack(self, ids: list[int], options: FabOptions) -> None:
        """All runs of all restarts."""
        total = options.restarts * self.runs
        for run in range(total):
            restart, self.planes.run = divmod(run, self.runs)
            rows = (self.record.clean_correct if self.stay else self.record.correct).nonzero()[:, 0]
            if rows.numel() == 0:
                return
            before = self.nearest.clone()
            for step, active in self._run(rows, self._start(rows, ids, options, run), options.steps, restart):
                if options.progress is not None:
                    where = {"step": step, "steps": options.steps, "restart": run, "restarts": total}
                    count = {"active": active, "robust": int(self.record.correct.sum()), "total": len(ids)}
                    options.progress({"attack": self.name, **where, **count})
            closer = self.nearest < before
            closer &= self.record.clean_correct if self.stay else self.record.correct
            rows = closer.nonzero()[:, 0]
            self._search_segment(rows, options.steps, restart)
            if not self.stay:
                rows = rows[self.record.correct[rows]]
            self._project_original(rows, options.steps, restart)

    def result(self, options: FabOptions) -> AttackResult:
        """Try the nearest points within the budget, check everything, close the record."""
        steps, restarts = options.steps, options.restarts
        rows = (self.record.correct & self.nearest.isfinite()).nonzero()[:, 0]
        if rows.numel() > 0:
            inside = project(self.nearest_point[rows], self.x[rows], self.threat.eps, self.threat.norm)
            self._take(rows, inside, self._judge(rows, inside), steps, restarts - 1)
        mismatches = None
        if options.verify and not self.planes.is_random:
            seen = self.judge.evaluate(self.record.x_adv, self.y, self.about[:, 0], gradient=False)
            mismatches = self.record.verify(seen.correct, steps, restarts)
        return self.record.result(
            self.x,
            self.threat,
            name=self.name,
            loss="margin",
            steps=steps,
            restarts=restarts,
            eot=self.planes.eot,
            forward_evaluations=self.planes.forward_evaluations + self.judge.forward_evaluations,
            gradient_evaluations=self.planes.gradient_evaluations,
            verify_mismatches=mismatches,
            minimal_distance=self.nearest,
        )

    def _start(self, rows: Tensor, ids: list[int], options: FabOptions, run: int) -> Tensor:
        if run < self.runs:
            return self.x[rows]
        points = []
        for row in rows.tolist():
            radius = min(float(self.nearest[row]), self.threat.eps) / 2
            image, of = self.x[row : row + 1], [ids[row]]
            points.append(random_start(image, radius, self.threat.norm, seed=options.seed, image_ids=of, restart=run))
        return torch.cat(points)

    def _run(self, rows: Tensor, point: Tensor, steps: int, restart: int) -> Iterator[tuple[int, int]]:
        """From point [n, C, H, W], images rows [n] of all N; yields (step, images left)."""
        for step in range(1, steps + 1):
            plane = self._linearise(rows, point)
            self.record.zero_gradient_steps[rows] += plane.unusable & plane.correct
            wrong = (~plane.correct).nonzero()[:, 0]
            self._take(rows[wrong], point[wrong], plane.rows(wrong), step - 1, restart)
            point = self._next(point, self.x[rows], plane)
            seen = self._judge(rows, point)
            self._take(rows, point, seen, step, restart)
            back = ((1.0 - BETA) * self.x[rows].double() + BETA * point.double()).float()
            point = torch.where(seen.correct.view(-1, 1, 1, 1), point, back)
            if not self.stay:
                left = self.record.correct[rows].nonzero()[:, 0]
                rows, point = rows[left], point[left]
            yield step, rows.numel()
            if rows.numel() == 0:
                return

    def _linearise(self, rows: Tensor, point: Tensor) -> Evaluation:
        """f and its gradient at point, for the run's class or for the one whose plane is nearest."""
        before = self.planes.calls
        plane = self._plane(rows, point)
        self.record.ask(rows, self.planes.calls - before)
        return plane

    def _plane(self, rows: Tensor, point: Tensor) -> Evaluation:
        y, about = self.y[rows], self.about[rows]
        if not self.untargeted:
            return self.planes.evaluate(point, y, about, gradient=True)
        chosen: Evaluation | None = None
        least = torch.full((len(rows),), math.inf, dtype=torch.float64, device=point.device)
        for rank in range(self.planes.runs):
            self.planes.run = rank
            plane = self.planes.evaluate(point, y, about, gradient=True)
            size = dual_norm(plane.slope.flatten(1), self.threat.norm)
            far = torch.where(size > 0, plane.loss.abs() / torch.where(size > 0, size, 1.0), math.inf)
            chosen = plane if chosen is None else _choose(far < least, plane, chosen)
            least = torch.minimum(least, far)
        assert chosen is not None
        return chosen

    def _next(self, point: Tensor, centre: Tensor, plane: Evaluation) -> Tensor:
        """x_(i+1) of the module docstring, [n, C, H, W] float32."""
        here, origin, w = point.double().flatten(1), centre.double().flatten(1), plane.slope.flatten(1)
        loss = plane.loss.nan_to_num(neginf=0.0, posinf=0.0)  # NaN logits: stay
        gain = torch.cat([-loss, -loss - row_sum(w * (origin - here))])
        norm = self.threat.norm
        steps = step_to_hyperplane(torch.cat([here, origin]), torch.cat([w, w]), gain, norm)
        length = distance(steps[:, :, None, None], torch.zeros_like(steps)[:, :, None, None], norm)
        (here_step, origin_step), (near, far) = steps.chunk(2), length.chunk(2)
        alpha = torch.where(near > 0, near / torch.where(near > 0, near + far, 1.0), 0.0).clamp(max=ALPHA_MAX)[:, None]
        mixed = (1.0 - alpha) * (here + ETA * here_step) + alpha * (origin + ETA * origin_step)
        return mixed.clamp(0.0, 1.0).float().view_as(point)

    def _judge(self, rows: Tensor, point: Tensor) -> Evaluation:
        self.record.ask(rows, self.judge.eot * len(rows))
        return self.judge.evaluate(point, self.y[rows], self.about[rows, 0], gradient=False)

    def _take(self, rows: Tensor, point: Tensor, seen: Evaluation, step: int, restart: int) -> None:
        """Take in points [n, C, H, W]: the nearest misclassified one anywhere, and what lies within the budget."""
        if rows.numel() == 0:
            return
        far = distance(point, self.x[rows], self.threat.norm)
        closer = (~seen.correct & (far < self.nearest[rows])).nonzero()[:, 0]
        self.nearest[rows[closer]] = far[closer]
        self.nearest_point[rows[closer]] = point[closer]
        self.nearest_loss[rows[closer]] = seen.loss[closer]
        self.record.non_finite_logits[rows] |= seen.non_finite
        inside = (far <= self.threat.eps).nonzero()[:, 0]
        aim = None if self.untargeted else self.planes.aimed_at(self.about[rows[inside]])
        seen = seen.rows(inside)
        self.record.add(
            rows[inside],
            point[inside],
            seen.loss,
            seen.correct,
            step=step,
            restart=restart,
            target=aim,
            right_once=seen.right_once,
        )

    def _search_segment(self, rows: Tensor, steps: int, restart: int) -> None:
        """The boundary between the images and their nearest misclassified points."""
        if rows.numel() == 0:
            return
        centre = self.x[rows].double()
        way = self.nearest_point[rows].double() - centre
        low, low_loss = torch.zeros_like(self.nearest[rows]), self._judge(rows, self.x[rows]).loss
        high, high_loss = torch.ones_like(low), self.nearest_loss[rows]
        for _ in range(SEARCH_STEPS):
            linear = (low_loss < 0) & (high_loss > 0) & low_loss.isfinite() & high_loss.isfinite()
            share = torch.where(linear, low_loss / torch.where(linear, low_loss - high_loss, 1.0), 0.5)
            at = low + (share + 0.1 * (1.0 - share)) * (high - low)
            point = (centre + at.view(-1, 1, 1, 1) * way).float()
            seen = self._judge(rows, point)
            self._take(rows, point, seen, steps, restart)
            low, low_loss = torch.where(seen.correct, at, low), torch.where(seen.correct, seen.loss, low_loss)
            high, high_loss = torch.where(seen.correct, high, at), torch.where(seen.correct, high_loss, seen.loss)

    def _project_original(self, rows: Tensor, steps: int, restart: int) -> None:
        """The original on the plane at its nearest misclassified point, and a little beyond."""
        if rows.numel() == 0:
            return
        point, origin = self.nearest_point[rows], self.x[rows].double().flatten(1)
        plane = self._linearise(rows, point)
        w, loss = plane.slope.flatten(1), plane.loss.nan_to_num(neginf=0.0, posinf=0.0)
        value = loss + row_sum(w * (origin - point.double().flatten(1)))
        step = step_to_hyperplane(origin, w, -(1.0 + BEYOND) * value, self.threat.norm)
        found = (origin + step).clamp(0.0, 1.0).float().view_as(point)
        self._take(rows, found, self._judge(rows, found), steps, restart)


def _choose(where: Tensor, one: Evaluation, other: Evaluation) -> Evaluation:
    """Row by row, the plane of one or the other; what both saw of the point is joined."""
    return Evaluation(
        torch.where(where, one.loss, other.loss),
        one.correct & other.correct,
        torch.where(where.view(-1, 1, 1, 1), one.slope, other.slope),
        one.unusable & other.unusable,
        one.non_finite | other.non_finite,
        one.right_once & other.right_once,
    )
