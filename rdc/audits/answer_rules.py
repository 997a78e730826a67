"""Rules about answers: their form, and that they depend on the image alone."""

from __future__ import annotations

from rdc.audits.answers import Answers
from rdc.audits.contents import Contents
from rdc.audits.inside import Generators, Inside
from rdc.audits.repeats import Batches, Memory
from rdc.audits.rule import ERROR, NOTE, WARNING, Outcome, Rule
from rdc.storage.json_records import given

__all__ = ["ANSWER_RULES"]

_ALIKE = 1e-4  # of the logits' spread: what two calls may differ by (as of the flag randomised-output)
_IN_A_BATCH = {False: 1e-3, True: 0.1}  # of the spread, by whether 16 bits are used: sums in another order


def _of(value: float, spread: float) -> float:
    return value / max(spread, 1e-30)


def _other_classes(found: Answers) -> Outcome:
    classes = found.logits.shape[1]
    numbers = {"classes of the model": classes, "classes of the data": found.classes}
    words = f"{classes} classes, the data have {found.classes}"
    if found.names_differ:
        words += "; both have the same names, in another order"
    other = classes < found.classes or (classes > found.classes and found.named)
    if classes > found.classes and not found.named:
        words += ", which are only counted: labels of the others may not have come"
    return Outcome(other or found.names_differ, words, numbers)


def _not_finite(found: Answers) -> Outcome:
    words = f"{found.not_finite} of {found.asked} answers are NaN or infinite (clean images, black, white, noise)"
    return Outcome(found.not_finite > 0, words, {"not finite": found.not_finite, "asked": found.asked})


def _constant(found: Answers) -> Outcome:
    largest = float(found.logits.abs().max())
    words = f"between {found.n} images a logit moves by up to {found.movement:.3g} (the largest is {largest:.3g})"
    return Outcome(found.movement <= 1e-6 * largest, words, {"movement": found.movement, "largest": largest})


def _chance(found: Answers) -> Outcome:
    classes = found.logits.shape[1]
    most = int(found.logits.argmax(1).bincount(minlength=classes).max())
    words = (
        f"{found.right} of {found.n} clean images are right; guessing among {classes} classes gets as many with probability "
        f"{found.by_chance:.2g}; the commonest decision is that of {most} images"
    )
    return Outcome(found.by_chance > 0.05, words, {"right": found.right, "n": found.n, "p by chance": found.by_chance})


def _tied(found: Answers) -> Outcome:
    words = f"the two highest logits are equal on {found.tied} of {found.n} images"
    return Outcome(found.tied > 0, words, {"tied": found.tied, "n": found.n})


def _half(found: Answers) -> Outcome:
    words = f"weights or arithmetic of {', '.join(found.types)}" if found.types else "no weights of 16 bits"
    return Outcome(bool(found.types), words)


def _probabilities(found: Answers) -> Outcome:
    is_so = bool(given(found.checks.probabilities))
    return Outcome(
        is_so, "every output is >= 0 and each row sums to 1" if is_so else "the outputs are no probabilities"
    )


def _random_output(found: Answers) -> Outcome:
    moved, changed = given(found.checks.repeat_difference), given(found.checks.repeat_decisions_changed) or 0
    if moved is None:
        return Outcome(False, "two calls on the same images: the answers are not finite")
    words = f"two calls on the same images: logits differ by up to {moved:.3g} (spread {found.spread:.3g}), {changed} decisions"
    numbers = {"difference": moved, "spread": found.spread, "decisions changed": changed}
    return Outcome(changed > 0 or _of(moved, found.spread) > _ALIKE, words, numbers)


def _optimises(found: Answers) -> Outcome:
    count = given(found.checks.gradients_inside) or 0
    return Outcome(count > 0, f"{count} calls of autograd inside one call of the model", {"calls of autograd": count})


def _global_generator(found: Generators) -> Outcome:
    words = (
        f"generators seeded alike: logits differ by {found.same:.3g}; seeded otherwise: by {found.other:.3g}, {found.changed} of "
        f"{found.asked} decisions; moved on: {', '.join(found.read) or 'none'}"
    )
    numbers = {"seeded alike": found.same, "seeded otherwise": found.other, "decisions changed": found.changed}
    return Outcome(found.same < 0.1 * found.other, words, numbers)


def _seeds_generator(found: Generators) -> Outcome:
    words = (
        f"generators in one and the same state after a call, whatever it was before: {', '.join(found.set) or 'none'}"
    )
    return Outcome(bool(found.set), words, {"set": ", ".join(found.set)})


def _stateful(found: Memory) -> Outcome:
    words = (
        f"asked again after {found.calls} calls ({found.images} images): logits differ by up to {found.moved:.3g} (spread "
        f"{found.spread:.3g}), {found.changed} decisions"
    )
    numbers = {"difference": found.moved, "spread": found.spread, "calls": found.calls, "images": found.images}
    if _of(found.at_once, found.spread) > _ALIKE:
        return Outcome(
            False, f"{words}; but two calls in a row differ by {found.at_once:.3g}, see random-output", numbers
        )
    return Outcome(_of(found.moved, found.spread) > _ALIKE, words, numbers)


def _batch_dependence(found: Batches) -> Outcome:
    words = (
        f"logits differ by {found.alone:.3g} alone, {found.turned:.3g} in reversed order, {found.strangers:.3g} among black and white "
        f"images (spread {found.spread:.3g}); {found.changed} of {found.asked} decisions"
    )
    numbers = {"alone": found.alone, "reversed": found.turned, "strangers": found.strangers, "spread": found.spread}
    if _of(found.random, found.spread) > _ALIKE:
        return Outcome(
            False, f"{words}; but two calls that are alike differ by {found.random:.3g}, see random-output", numbers
        )
    return Outcome(_of(found.moved, found.spread) > _IN_A_BATCH[found.coarse], words, numbers)


def _order_leak(found: Batches) -> Outcome:
    words = (
        f"{found.right} of {found.n} images are right in the order of the data, {found.right_turned} in reversed order"
    )
    numbers = {"right": found.right, "right in reversed order": found.right_turned, "n": found.n}
    return Outcome(found.order_tells, words, numbers)


def _training_mode(found: Inside) -> Outcome:
    named = ", ".join(f"{name} ({count})" for name, count in sorted(found.training.items()))
    words = f"in training mode during a call: {named}" if named else f"none of {found.modules} modules in training mode"
    return Outcome(bool(named), words, {"modules": found.modules, **found.training})


def _repeated(found: Inside) -> Outcome:
    words = f"a module with weights runs up to {found.most_runs} times in one call"
    return Outcome(found.most_runs > 2, words, {"runs": found.most_runs})


def _changes_weights(found: Inside) -> Outcome:
    words = f"a call changed {len(found.changed)} weights or buffers" + (
        f": {', '.join(found.changed[:4])}" if found.changed else ""
    )
    return Outcome(bool(found.changed), words, {"changed": len(found.changed)})


def _changes_input(found: Inside) -> Outcome:
    words = f"a call changed the tensor that it was given by up to {found.input_moved:.3g}"
    return Outcome(found.input_moved > 0, words, {"change": found.input_moved})


def _holds_answers(found: Contents) -> Outcome:
    parts = [f"the labels of these images in a {one}" for one in found.labels]
    parts += [f"some of these images in a {one}" for one in found.images]
    words = (
        "; ".join(parts) or f"neither labels nor images in {found.looked} tensors, arrays and lists inside the model"
    )
    return Outcome(bool(parts), words, {"labels": len(found.labels), "images": len(found.images)})


ANSWER_RULES = (
    Rule(
        "other-classes",
        WARNING,
        "the model has fewer classes than the data, or more than they have names, or calls the same classes by other numbers",
        "Labels are numbers. Where they mean something else to the model, an image counts as broken that was "
        "never right, and a targeted "
        "attack aims at classes that nobody has.",
        "Bring the model's outputs into the order of the data; leave no output that no label has.",
        "k = int(y.max()) + 1; print(model(x).shape[1] != k, tuple(model(x).shape), 'labels up to', k - 1)",
        "answers",
        _other_classes,
    ),
    Rule(
        "non-finite-output",
        ERROR,
        "a logit is NaN or infinite on a clean, black, white or noisy image",
        "A broken answer is no decision. Losses made of it have no gradient, so the attack stands still where the model breaks.",
        "Find where the numbers leave the range of their type: divisions, logarithms, 16 bits.",
        "z = model(torch.cat([x, 0 * x[:1], 0 * x[:1] + 1])); print(not bool(z.isfinite().all()), "
        "int((~z.isfinite()).any(1).sum()))",
        "answers",
        _not_finite,
    ),
    Rule(
        "constant-output",
        ERROR,
        "the logits are the same for all images",
        "The answer does not depend on the image, so no attack can change it. Robust accuracy equals the share of one class.",
        "Look for weights that were not loaded, or an input that is thrown away.",
        "z = model(x); d = float((z.amax(0) - z.amin(0)).max()); print(d <= 1e-6 * float(z.abs().max()), d)",
        "answers",
        _constant,
    ),
    Rule(
        "chance-accuracy",
        WARNING,
        "no more clean images are right than by guessing (p > 0.05)",
        "There is nothing to attack. Mostly the images are on another scale than the model was trained on, or "
        "the labels are another's.",
        "Check scale and order of the channels (other-range looks at some), and the order of the classes.",
        "right = int((model(x).argmax(1) == y).sum()); print(right < 0.3 * len(y), right, 'of', len(y))",
        "answers",
        _chance,
    ),
    Rule(
        "tied-logits",
        WARNING,
        "the two highest logits of a clean image are equal",
        "argmax then takes the first class, whatever the image says. Whoever breaks ties otherwise gets another "
        "accuracy, and margins are 0.",
        "Compute the logits in float32; do not round, clip or saturate them.",
        "top = model(x).topk(2, dim=1).values; n = int((top[:, 0] == top[:, 1]).sum()); print(n > 0, n, 'of', len(x))",
        "answers",
        _tied,
    ),
    Rule(
        "half-precision",
        NOTE,
        "weights or arithmetic have 16 bits",
        "Pixels of bfloat16 are hardly finer than 8 bits, and small gradients underflow in float16. Attacks are weaker for it.",
        "Attack the same weights in float32 and check the images that it finds in 16 bits.",
        "kinds = {str(p.dtype) for m in rdc.audits.modules_called(model, x[:2]) for p in m.parameters()}; "
        "print(bool(kinds & {'torch.float16', 'torch.bfloat16'}), sorted(kinds))",
        "answers",
        _half,
    ),
    Rule(
        "probabilities",
        NOTE,
        "the outputs are probabilities: not negative, each row sums to one",
        "Where a probability rounds to 0 or 1 its gradient vanishes, and losses made for logits stall.",
        "Return logits, or log-probabilities computed by log_softmax.",
        "z = model(x); print(bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-3).all()), float(z.min()), float(z.max()))",
        "answers",
        _probabilities,
    ),
    Rule(
        "random-output",
        WARNING,
        "two calls on the same images differ",
        "The attack works on one function and is scored on another, and a gradient of one draw is noise. Random "
        "answers overrate robustness.",
        "Give the attacker the noise (a fixed draw), or evaluate with fresh noise, gradients averaged over at "
        "least 20 draws, and each image "
        "submitted several times.",
        "d = float((model(x) - model(x)).abs().max()); print(d > 0, d)",
        "answers",
        _random_output,
    ),
    Rule(
        "test-time-optimisation",
        NOTE,
        "the model asks autograd for gradients while it classifies",
        "It optimises its input (or itself) first. Attacks that do not go through that, or stop at detached "
        "gradients, overrate it.",
        "Attack with gradients through it, and with attacks on its objective: --gradient exact --attacks autoattack,adaptive.",
        "n = rdc.evaluation.sanity.check_output(model, x).gradients_inside; print(n > 0, n)",
        "answers",
        _optimises,
    ),
    Rule(
        "repeated-network",
        NOTE,
        "a module with weights runs more than twice in one call",
        "The answer is made of many: a vote over copies of the image, a purification in steps (or a batch in pieces). It costs "
        "an attacker as much more, and "
        "published figures of such models were often made with fewer steps for it.",
        "Say the cost beside the figure, and give the attack all passes that the model takes.",
        "c = rdc.audits.runs_of_modules(model, x[:4]); print(max(c, default=0) > 2, max(c, default=0))",
        "inside",
        _repeated,
    ),
    Rule(
        "global-generator",
        WARNING,
        "answers depend on the seed of a global generator (torch, NumPy or Python)",
        "Whoever seeds it decides the answer: an evaluation that seeds it before each call attacks one draw, and "
        "is scored on another.",
        "Draw from a generator of the model's own, with a seed that can be set.",
        "torch.manual_seed(1); a = model(x); torch.manual_seed(2); d = float((model(x) - a).abs().max()); print(d > 0, d)",
        "generators",
        _global_generator,
    ),
    Rule(
        "seeds-generator",
        WARNING,
        "a call sets the seed of a global generator",
        "After each call every random number of the program is the same: random starts, restarts and Square's "
        "proposals repeat themselves.",
        "Draw from a generator of the model's own; never call torch.manual_seed in forward.",
        "torch.manual_seed(1); model(x); a = torch.rand(1); torch.manual_seed(2); model(x); b = torch.rand(1); "
        "print(bool(a == b), float(a), "
        "float(b))",
        "generators",
        _seeds_generator,
    ),
    Rule(
        "stateful",
        WARNING,
        "the same image is answered otherwise after others, or near copies of it, were asked",
        "The model counts or remembers queries. A white-box attacker makes a copy and asks that; figures of an "
        "attack that asks the "
        "model itself are about the counter.",
        "Attack a copy that forgets, for each call anew.",
        "a = model(x); [model(x[:1] + i / 2550) for i in range(40)]; d = float((model(x) - a).abs().max()); print(d > 0, d)",
        "memory",
        _stateful,
    ),
    Rule(
        "batch-dependence",
        WARNING,
        "an image's answer depends on the others in its batch, on its place or on their number",
        "An attacker's image is judged in other company than it was made in. Attacked in a batch, images also "
        "move each other's answers.",
        "Classify each image by itself; put batch norms into evaluation mode.",
        "a = model(x)[:4]; b = torch.cat([model(one) for one in x[:4].split(1)]); c = model(x.flip(0)).flip(0)[:4]; "
        "d = float(torch.maximum((a - b).abs(), (a - c).abs()).max()); print(d > 1e-3 * float(a.std()), d)",
        "batches",
        _batch_dependence,
    ),
    Rule(
        "order-leakage",
        ERROR,
        "more images are right in the order of the data than in reversed order, by a fifth of all and not by chance",
        "The model knows the labels by the order of the file. Its accuracy says nothing about images.",
        "Shuffle the images before every evaluation; find where the model learns the position.",
        "a, b = (float((model(x).argmax(1) == y).float().mean()), float((model(x.flip(0)).argmax(1) == "
        "y.flip(0)).float().mean())); "
        "print(a - b >= 0.2, a, b)",
        "batches",
        _order_leak,
    ),
    Rule(
        "training-mode",
        WARNING,
        "dropout or a norm of batch statistics runs in training mode",
        "Dropout makes answers random, batch statistics make them depend on the batch: either masks gradients. "
        "rdc puts a module that it is "
        "given into evaluation mode, but not one that hides in a function.",
        "Call .eval() on the network before it is wrapped.",
        "found = rdc.audits.modules_in_training(model, x[:4]); print(bool(found), found)",
        "inside",
        _training_mode,
    ),
    Rule(
        "changes-weights",
        WARNING,
        "a call changes weights or buffers of a module",
        "The model learns while it is attacked: what an image was optimised against is gone when it is judged.",
        "Restore the weights after each call, or attack a frozen copy.",
        "mods = rdc.audits.modules_called(model, x[:4]); a = [v.clone() for m in mods for v in "
        "m.state_dict().values()]; model(x[:4]); "
        "n = sum(not torch.equal(v, w) for v, w in zip(a, (v for m in mods for v in m.state_dict().values()))); print(n > 0, n)",
        "inside",
        _changes_weights,
    ),
    Rule(
        "modifies-input",
        WARNING,
        "a call changes the tensor of pixels that it is given",
        "An attack that hands over its own tensor goes on from pixels that it did not choose; the budget is no "
        "longer what it seems. "
        "rdc hands over copies, other tools do not.",
        "Copy the pixels first; no operation in place (those that end in _) on the input.",
        "z = x.clone(); getattr(model, 'model', model)(z); d = float((z - x).abs().max()); print(d > 0, d)",
        "inside",
        _changes_input,
    ),
    Rule(
        "holds-the-answers",
        ERROR,
        "the labels of these images in a row, or some of the images, are stored inside the model",
        "The model can look up what it is asked. Its accuracy says nothing about other images.",
        "Evaluate on images that it has never held; find out why it holds these.",
        "found = rdc.audits.answers_inside(getattr(model, 'model', model), x, y); print(bool(found.labels or "
        "found.images), found)",
        "contents",
        _holds_answers,
    ),
)
