"""Which tests ought to notice a change of which module: the quickest first."""

from __future__ import annotations

__all__ = ["LOADED", "TARGETS", "tests_of"]

#: modules of ours that import none of these
LOADED = (
    "rdc.arguments.seeds", "rdc.arguments.class_names", "rdc.errors", "rdc.execution.frozen", "rdc.execution.memory",
    "rdc.execution.opaque", "rdc.execution.surroundings", "rdc.images.pixels", "rdc.networks.presets", "rdc.ops.multihead_loss",
    "rdc.statistics.proportions", "rdc.storage.json_files", "rdc.storage.reading", "rdc.storage.sealed",
)  # fmt: skip

_METHOD, _EVALUATION = "tests/method/test_", "tests/evaluation/test_"

#: without the slow ones on memory, torch.func and float16
_CLASSIFIER = [
    f"{_METHOD}classifier.py::test_{name}"
    for name in (
        "losses_follow_the_equation",
        "multihead_agrees_with_its_own_f",
        "description_is_json",
        "what_likelihood_maximisation_offers_is_offered_with_it_alone",
        "settings_round_trip_and_weights_are_shared",
        "bad_settings_are_refused",
        "precision_belongs_to_the_copy_and_weights_are_shared",
        "precision_is_refused_with_the_names_that_exist",
        "a_network_that_is_no_denoiser_is_refused",
        "fixed_noise_repeats_and_fresh_noise_does_not",
        "network_evaluations_are_counted",
        "logits_are_log_probabilities_and_do_not_depend_on_requires_grad",
        "permuting_the_classes_permutes_the_logits",
        "bpda_is_the_gradient_of_dc_at_the_moved_point",
        "chunks_and_batch_composition_change_nothing[multihead-bpda]",
        "exact_gradient_equals_central_differences[conditional-momentum]",
        "bfloat16_is_close_to_float32_forward_and_backward[multihead-None]",
    )
]
_PIECES = [
    f"{_METHOD}class_gradients.py::test_{name}"
    for name in (
        "gradient_is_that_of_the_whole_batch",
        "only_classes_that_carry_gradient_are_passed_again",
        "a_small_but_visible_share_is_kept",
        "an_eighth_of_epsilon_is_the_least_that_is_kept",
        "pieces_are_forgotten_unless_told_otherwise",
        "what_is_not_a_number_is_not_hidden",
        "a_classifier_under_its_budget_takes_two_classes_for_a_margin",
        "frozen_weights_cost_no_pass_more",
        "rebuilt_pieces_give_the_bits_of_checkpointed_ones",
        "second_derivatives_are_those_of_the_whole_batch",
        "saturated_cross_entropy_equals_float64",
        "whatever_else_wants_a_gradient_gets_it[conditional-noise]",
        "unfrozen_weights_get_their_gradient_under_a_small_budget[conditional-DC-pixels too]",
    )
]
_RUNS = f"{_EVALUATION}evaluation.py::test_"
_FIGURES = [
    f"{_EVALUATION}boundaries.py",
    f"{_RUNS}accuracy_per_step_and_class",
    f"{_RUNS}report_and_what_it_rests_on",
    f"{_RUNS}network_evaluations_are_counted",
    f"{_RUNS}nan_counts_as_wrong_and_is_flagged",
    f"{_RUNS}known_and_fresh_noise_together",
]
_ATTACKS = [
    f"{_RUNS}next_attack_sees_survivors_only",
    f"{_RUNS}fresh_draws_differ_between_batches_and_seeds",
    f"{_RUNS}endpoints_go_on_from_every_attack_before",
    f"{_RUNS}every_attack_runs_in_an_evaluation[flow]",
    f"{_RUNS}every_attack_runs_in_an_evaluation[l2]",
]
_FOLDERS = [
    f"{_RUNS}goes_on_where_it_stopped[arrays]",
    f"{_RUNS}damage_in_the_middle_is_no_reason_to_guess",
    f'{_RUNS}folder_of_another_command[changes0-eps: "4/255" there, "8/255" now]',
    f"{_RUNS}a_folder_that_is_not_ours_is_left_alone",
    f"{_RUNS}two_at_once",
    f"{_RUNS}more_images_than_there_are",
    f"{_RUNS}images_the_model_does_not_know",
    f"{_RUNS}every_source_tree_that_made_figures_is_named",
    "tests/storage/test_run_folders.py::test_one_damaged_batch_is_computed_again_and_no_other[other shape]",
]
_SETTINGS = [
    f"{_EVALUATION}records.py::test_settings_by_default",
    f"{_RUNS}settings_refuse",
    f"{_RUNS}fresh_defaults_to_averaging",
    f"{_RUNS}parse_attacks",
    f"{_RUNS}suites_leave_out_what_a_model_does_not_offer",
    "tests/arguments/test_scalars.py",
]

#: module -> its tests (files or tests of them)
TARGETS: dict[str, list[str]] = {
    "rdc/contracts/component.py": ["tests/contracts/test_component.py"],
    "rdc/contracts/parts.py": ["tests/contracts/test_parts.py"],
    "rdc/method/class_gradients.py": _PIECES,
    "rdc/method/classifier.py": _CLASSIFIER,
    "rdc/method/denoiser.py": _CLASSIFIER,
    "rdc/method/draw.py": [f"{_METHOD}draw.py"],
    "rdc/method/levels.py": [f"{_METHOD}levels.py"],
    "rdc/method/likelihood_maximization.py": [
        f"{_METHOD}likelihood_maximization.py",
        f"{_METHOD}class_gradients.py::test_gradient_of_weights_passes_through_the_steps",
    ],
    "rdc/method/noise.py": [f"{_METHOD}noise.py"],
    "rdc/method/posterior.py": [f"{_METHOD}posterior.py"],
    "rdc/method/preconditioning.py": [f"{_METHOD}preconditioning.py"],
    "rdc/method/sampling.py": [f"{_METHOD}sampling.py"],
    "rdc/evaluation/answers.py": [
        "tests/decisions/test_answers.py::test_doubts",
        f"{_EVALUATION}boundaries.py::test_answers_that_mean_nothing_stop_a_run_at_its_first_batch",
    ],
    "rdc/evaluation/attacking.py": [f"{_EVALUATION}attack_arguments.py", *_FIGURES, *_ATTACKS],
    "rdc/evaluation/batch.py": [*_FIGURES, *_ATTACKS],
    "rdc/evaluation/comparison.py": [f"{_EVALUATION}comparison.py"],
    "rdc/evaluation/files.py": [
        f"{_EVALUATION}records.py",
        f"{_EVALUATION}comparison.py::test_folders_that_are_no_finished_runs",
        f"{_EVALUATION}comparison.py::test_a_checksum_taken_away_is_damage",
        "tests/storage/test_run_folders.py::test_odd_content_without_checksums_is_one_line",
    ],
    "rdc/evaluation/flag_checks.py": [f"{_EVALUATION}flag_boundaries.py", f"{_EVALUATION}boundaries.py"],
    "rdc/evaluation/folder.py": _FOLDERS,
    "rdc/evaluation/records.py": [f"{_EVALUATION}records.py", f"{_EVALUATION}boundaries.py"],
    "rdc/evaluation/report.py": [f"{_EVALUATION}records.py", f"{_EVALUATION}boundaries.py"],
    "rdc/evaluation/results.py": [f"{_EVALUATION}results.py", *_FOLDERS],
    "rdc/evaluation/run.py": [f"{_EVALUATION}run.py", *_FIGURES, *_FOLDERS],
    "rdc/evaluation/sanity.py": [f"{_EVALUATION}sanity.py", f"{_EVALUATION}flags.py"],
    "rdc/evaluation/scoring.py": [f"{_EVALUATION}boundaries.py", f"{_EVALUATION}records.py"],
    "rdc/evaluation/settings.py": _SETTINGS,
    "rdc/evaluation/summary.py": [*_FIGURES, f"{_EVALUATION}records.py"],
    "rdc/evaluation/totals.py": [*_FIGURES, f"{_EVALUATION}records.py"],
    "rdc/attacks/apgd.py": ["tests/attacks/test_apgd.py"],
    "rdc/norm_balls.py": ["tests/test_norm_balls.py"],
    "rdc/training/first_order.py": ["tests/training/test_first_order.py"],
}


def tests_of(module: str) -> list[str]:
    return TARGETS[module]
