"""Writes the tables of docs/reliability.md from what tests and a soak have noted.

DMT_DS_OUTCOMES=outcomes.jsonl make test
python -m tests.faults.soak --minutes 60 --out soak.json
python -m tests.faults.table outcomes.jsonl soak.json
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: written by tests/faults/table.py -->", "<!-- end of the table -->"
SOAK_BEGIN, SOAK_END = "<!-- soak: written by tests/faults/table.py -->", "<!-- end of the soak -->"


class Fault(NamedTuple):
    """What goes wrong, what is promised, and where that is shown."""

    what: str
    promise: str
    tests: tuple[str, ...]
    """`file below tests/::test`, without parameters."""
    in_soak: tuple[str, ...] = ()


GOES_ON = "the next start goes on from the newest complete checkpoint, with the losses of an unbroken run"
FAULTS = [
    Fault("SIGKILL of one or all ranks in start, step, evaluation, save", GOES_ON,
          ("faults/test_kills.py::test_ten_kills_at_random_moments_lose_nothing_and_change_no_loss",
           "integration/test_killed_saves.py::test_twenty_kills_at_random_moments_lose_nothing_that_was_complete"),
          ("SIGKILL of one rank", "SIGKILL of all ranks")),
    Fault("SIGSTOP of a rank, also of the one that hosts the rendezvous",
          "the job ends in `train.hang_timeout_seconds` and some seconds, with the stacks of every rank of the node",
          ("faults/test_ranks.py::test_a_rank_that_was_stopped_ends_the_job_in_time_with_the_stacks_of_all",),
          ("SIGSTOP of one rank",)),
    Fault("a log, a terminal or a store that hangs while a hanging job is ended", "it ends all the same",
          ("engine/test_stopping.py::test_a_log_a_terminal_or_a_record_that_hangs_does_not_keep_a_hanging_process_alive",)),
    Fault("a node loses its power: what was not on the disk is gone",
          "a checkpoint that has its name is whole, points of its steps are there, what is made again is sent again",
          ("engine/test_checkpoint.py::test_all_files_and_folders_are_on_the_disk_before_a_checkpoint_has_its_name_and_latest_after_it",
           "engine/test_learner.py::test_points_are_written_out_before_a_checkpoint_makes_sure_that_their_steps_are_not_made_again",
           "tracking/test_spool.py::test_what_takes_the_place_of_lines_that_a_power_cut_took_is_sent")),
    Fault("the whole job suspended and continued", "it goes on",
          ("faults/test_ranks.py::test_a_job_that_is_suspended_as_a_whole_goes_on",)),
    Fault("SIGTERM, SIGUSR1", "all ranks save and end with code 0",
          ("integration/test_stopping.py::test_term_saves_and_ends_with_0_and_the_next_start_goes_on_in_the_same_mlflow_run",
           "integration/test_stopping.py::test_usr1_on_one_rank_stops_all_ranks_after_a_save"),
          ("SIGTERM", "SIGUSR1 to one rank")),
    Fault("out of memory on one rank", "one line with the setting to lower",
          ("faults/test_ranks.py::test_out_of_memory_on_one_rank_says_what_to_lower",)),
    Fault("a loader process killed", "one line with the setting to lower; no process stays behind",
          ("faults/test_ranks.py::test_a_killed_loader_process_ends_the_run_in_one_line_and_nothing_stays_behind",
           "data/test_loader.py::test_a_killed_worker_ends_the_run_with_the_remedy",
           "data/test_loader.py::test_no_process_outlives_a_killed_trainer")),
    Fault("disk full in a save", "the earlier checkpoint stays; one line; with room the next start goes on",
          ("integration/test_bad_input.py::test_a_full_disk_keeps_the_earlier_checkpoint",
           "engine/test_checkpoint.py::test_a_disk_that_becomes_full_in_a_save_costs_that_save_at_most"),
          ("disk full",)),
    Fault("disk full while it logs",
          "training goes on; once there is room all points arrive (of those that wait, the first MiB)",
          ("faults/test_folders.py::test_a_disk_that_is_full_for_a_while_costs_no_point_and_no_step",
           "faults/test_folders.py::test_a_start_on_a_full_disk_is_one_line",
           "tracking/test_spool.py::test_a_copy_that_a_full_disk_did_not_take_is_made_once_there_is_room")),
    Fault("run folder read-only", "one line; earlier checkpoints stay; the next start goes on",
          ("faults/test_folders.py::test_a_folder_that_becomes_read_only_keeps_its_checkpoints_and_the_run_goes_on_later",),
          ("folder read-only",)),
    Fault("checkpoint truncated, emptied, a bit turned over, `latest` pointing nowhere",
          "passed over for the one before, by sizes and sha256; never a silent start from nothing",
          ("faults/test_checkpoints.py::test_the_run_goes_on_from_what_is_whole_with_the_losses_of_an_unbroken_one",
           "engine/test_checkpoint.py::test_a_single_bit_of_any_file_that_has_turned_over_is_noticed",
           "engine/test_checkpoint.py::test_where_no_checkpoint_is_left_whole_the_run_does_not_start_afresh"),
          ("a bit of a checkpoint turned over", "a checkpoint's file truncated", "a checkpoint's file emptied")),
    Fault("a disk or file server that gives no answer (EIO, ESTALE and the like) while checkpoints are looked at",
          "tried again for some seconds, then one line and exit code 75; none is given up for an older one or removed",
          ("faults/test_checkpoints.py::test_a_checkpoint_that_can_not_be_read_for_a_while_is_the_one_that_the_run_goes_on_from_later",
           "engine/test_checkpoint.py::test_a_checkpoint_that_can_not_be_read_is_not_given_up_for_an_older_one",
           "engine/test_checkpoint.py::test_a_checkpoint_that_can_be_read_again_within_seconds_costs_nothing",
           "engine/test_checkpoint.py::test_nothing_is_removed_while_nobody_can_tell_what_is_whole")),
    Fault("no such answer in a save, or another node's file that does not appear within a minute",
          "one line and exit code 75; earlier checkpoints stay, and nobody is told to make room",
          ("engine/test_checkpoint.py::test_a_save_without_an_answer_is_worth_another_try_and_nobody_has_to_make_room",
           "engine/test_checkpoint.py::test_a_write_of_torchs_that_gets_no_answer_is_not_told_as_a_full_disk",
           "engine/test_checkpoint.py::test_a_file_of_another_node_that_does_not_appear_is_worth_another_try",
           "engine/test_checkpoint.py::test_older_checkpoints_that_a_server_does_not_remove_are_removed_by_another_try")),
    Fault("clock jumps a day ahead, two back", "nothing is lost, nothing hangs or is ended",
          ("faults/test_folders.py::test_a_clock_that_jumps_a_day_ahead_and_two_back_costs_nothing",)),
    Fault("MLflow server down at start or in the middle", "every point arrives once; training never waits",
          ("tracking/test_mlflow_tracker.py::test_a_run_begun_while_the_server_is_away_is_made_later_with_its_true_start",
           "tracking/test_mlflow_tracker.py::test_every_point_arrives_once_though_the_server_dies_and_comes_back",
           "engine/test_stopping.py::test_what_may_take_longer_is_given_that_time_and_no_more",
           "faults/test_ranks.py::test_a_run_whose_store_is_away_at_its_end_is_finished_on_all_ranks_however_long_it_is_waited_for"),
          ("MLflow server killed",)),
    Fault("MLflow server answers 500, hangs, takes points without an answer", "every point arrives once",
          ("faults/test_store.py::test_every_point_arrives_once_whatever_the_server_does",
           "faults/test_store.py::test_what_a_database_in_trouble_refuses_is_not_taken_for_bad")),
    Fault("SQLite store locked by another writer, or its first tables cut off by a kill", "every point arrives once",
          ("faults/test_store.py::test_every_point_arrives_once_though_another_writer_holds_the_file",
           "faults/test_store.py::test_a_kill_while_the_first_run_makes_the_tables_leaves_a_store_that_works"),
          ("SQLite store locked for 4 s",)),
    Fault("a rank fails while rank 0, which fails too, still sends its last points",
          "they arrive, and so does the state of the run",
          ("faults/test_store.py::test_a_peers_failure_does_not_cut_off_what_rank_0_still_sends",
           "tracking/test_mlflow_tracker.py::test_a_second_finish_waits_for_the_first_one_but_no_longer_than_by_itself")),
    Fault("pictures: CMYK, palette, 16 bits, animated, rotated by EXIF, 1 x 1", "read",
          ("faults/test_images.py::test_each_odd_picture_is_read_and_each_broken_one_is_named_and_left_out",
           "data/test_decode.py::test_every_format_and_mode_is_as_pillow_says")),
    Fault("pictures: corrupt, truncated, of zero bytes, decompression bombs",
          "one line with the file, or left out where `data.bad_images=skip`",
          ("faults/test_images.py::test_a_broken_picture_ends_a_run_in_one_line",
           "data/test_decode.py::test_random_damage_gives_an_image_or_one_line")),
    Fault("files vanish while they are read, or the whole folder",
          "one line with the file, or left out while some are left",
          ("faults/test_images.py::test_files_that_vanish_while_they_are_read_are_named_and_left_out",
           "faults/test_images.py::test_a_picture_that_vanishes_ends_a_run_in_one_line_where_that_is_asked_for",
           "faults/test_images.py::test_a_data_folder_that_is_gone_as_a_whole_ends_a_run_in_one_line")),
    Fault("a picture that the file server does not give (EIO, ESTALE and the like)",
          "tried again for some seconds, then one line and exit code 75; with `data.bad_images=skip` too",
          ("faults/test_images.py::test_a_picture_without_an_answer_ends_a_run_in_one_line_that_is_worth_another_try",
           "data/test_sources.py::test_an_image_that_can_be_read_again_within_seconds_is_the_same",
           "data/test_loader.py::test_an_image_without_an_answer_is_not_a_bad_one_whoever_reads_it")),
    Fault("a folder of pictures that the file server does not list, or that may not be read",
          "the same, or one line and exit code 2; never taken for an empty one",
          ("data/test_sources.py::test_a_folder_without_an_answer_is_asked_again_and_never_taken_for_an_empty_one",)),
    Fault("NaN or inf in the loss of one rank", "that update is in no weight and no checkpoint; one line with the rank",
          ("faults/test_losses.py::test_a_loss_that_is_no_number_is_in_no_weight_and_the_next_start_is_as_if_nothing_was",
           "engine/test_deferred_updates.py::test_an_unsound_update_is_not_made_and_the_run_ends_a_step_later_on_all_ranks")),
    Fault("a loss 10,000 times as large in one step", "in the record; with `optim.clip_grad_norm` one clipped step",
          ("faults/test_losses.py::test_a_spike_is_in_the_record_and_moves_the_weights_no_further_than_any_step",)),
    Fault("port taken, also by another job of two ranks", "one line with the address; the other job goes on",
          ("integration/test_bad_input.py::test_a_taken_port_is_one_line_with_the_address",
           "faults/test_ranks.py::test_a_job_on_the_port_of_another_one_ends_in_one_line_and_does_it_no_harm")),
    Fault("two jobs, one output folder, also started in the same moment",
          "the newer goes on, the older ends in one line that names it",
          ("faults/test_folders.py::test_of_two_jobs_in_one_folder_the_newer_goes_on_and_the_older_ends_with_its_name",
           "engine/test_fence.py::test_of_two_that_start_in_the_same_moment_one_has_the_run_and_the_other_is_told_of_it")),
    Fault("a job that stood still or was cut off (in a step, a save, at its end) goes on after another took its run",
          "it writes no point, no checkpoint, no state and no weights any more; one line that names the newer one",
          ("faults/test_taken_over.py::test_an_attempt_that_comes_back_writes_nothing_and_names_the_newer_one",
           "faults/test_taken_over.py::test_an_attempt_that_comes_back_after_its_last_step_publishes_nothing",
           "engine/test_fence.py::test_an_attempt_that_wakes_up_in_a_save_does_not_write_into_that_of_the_newer_one",
           "engine/test_fence.py::test_an_attempt_that_wakes_up_while_it_prunes_removes_nothing_of_the_newer_one",
           "engine/test_fence.py::test_an_attempt_that_wakes_up_before_a_save_removes_nothing_that_the_newer_one_writes",
           "slurm/test_training.py::test_an_attempt_on_a_node_that_was_cut_off_writes_nothing_when_it_comes_back")),
    Fault("on a real SLURM: a node without power, USR1 before a time limit, fewer nodes than before",
          "requeued, and each step is there with the loss of an unbroken run, in one MLflow run",
          ("slurm/test_training.py::test_a_node_that_lost_power_is_replaced",
           "slurm/test_training.py::test_usr1_saved_and_no_step_was_done_twice",
           "slurm/test_training.py::test_a_run_of_two_nodes_goes_on_with_one",
           "slurm/test_training.py::test_no_step_is_missing_after_all_that_and_every_loss_is_that_of_an_unbroken_run",
           "slurm/test_training.py::test_all_attempts_are_one_finished_mlflow_run_with_each_step")),
    Fault("restart with other code, settings, teachers or data",
          "refused with the difference, or accepted by `train.accept_changes`",
          ("faults/test_restarts.py::test_other_code_is_refused_with_the_name_of_the_file",
           "faults/test_restarts.py::test_other_settings_and_teachers_are_taken_where_that_is_said",
           "faults/test_restarts.py::test_other_data_are_refused_with_the_difference_and_taken_where_that_is_said",
           "faults/test_restarts.py::test_another_model_is_never_taken")),
    Fault("restart with other versions of libraries", "one line names them; refused where `train.deterministic` is set",
          ("commands/test_resume.py::test_other_libraries_are_told_in_one_line",
           "commands/test_resume.py::test_a_run_that_asks_for_the_same_bits_refuses_other_libraries_unless_they_are_accepted")),
    Fault("the run made again from its record", "the same losses, bit for bit, on the same machine",
          ("faults/test_restarts.py::test_the_record_tells_all_that_is_needed_to_make_the_run_again",)),
    Fault("weights or a checkpoint that would run a program", "refused, whatever a manifest says; nothing runs",
          ("faults/test_checkpoints.py::test_a_checkpoint_that_would_run_a_program_is_refused_even_with_a_manifest_that_fits",
           "models/test_malicious_files.py::test_a_checkpoint_that_would_run_a_program_is_refused",
           "models/test_malicious_files.py::test_a_bare_pickle_is_refused_whatever_it_is_called",
           "models/test_malicious_files.py::test_code_beside_a_transformers_model_is_not_run_and_nobody_is_asked")),
    Fault("hostile overrides, names and paths in the scripts", "no shell runs any of it; they arrive as written",
          ("faults/test_shell.py::test_overrides_of_a_job_are_not_run_by_its_shell",
           "faults/test_shell.py::test_words_of_a_sweeps_line_are_not_run_by_its_shell",
           "faults/test_shell.py::test_a_suites_settings_reach_the_task_of_an_array_line_by_line",
           "faults/test_shell.py::test_a_stores_path_is_not_run_by_the_servers_script")),
    Fault("folders, stores and tar files that name files outside of themselves", "none is read, copied or written",
          ("faults/test_paths.py::test_a_run_folder_that_names_files_outside_of_itself_gives_none_of_them",
           "faults/test_paths.py::test_a_store_that_names_files_outside_of_the_run_is_refused",
           "faults/test_paths.py::test_names_in_a_tar_of_images_lead_nowhere_and_what_lies_beside_them_is_not_run")),
    Fault("secrets in URIs, settings and the environment", "in no log, error, param, tag or file",
          ("faults/test_secrets.py::test_a_run_keeps_and_says_no_secret_of_its_environment",
           "faults/test_secrets.py::test_a_setting_that_holds_a_password_is_refused_without_being_told",
           "faults/test_secrets.py::test_a_setting_that_holds_any_secret_is_refused_in_one_line",
           "faults/test_secrets.py::test_a_bug_tells_no_secret_in_any_traceback_nor_through_a_strangers_logger",
           "test_redact.py::test_a_secret_of_any_shape_is_gone",
           "test_redact.py::test_a_secret_of_the_environment_is_left_out_of_all_lines")),
    Fault("strangers at the MLflow server", "loopback unless opened, and then with a password and for known names",
          ("tracking/test_mlflow_server.py::test_by_default_only_this_machine_can_reach_it",
           "tracking/test_mlflow_server.py::test_opened_to_others_it_asks_for_the_password_and_tells_it_nobody")),
    Fault("random recipes, overrides, manifests and records", "a run, or one line a finding",
          ("faults/test_properties.py::test_whatever_overrides_are_given_they_resolve_or_are_told",
           "faults/test_properties.py::test_whatever_a_recipe_holds_it_resolves_or_is_told",
           "engine/test_checkpoint.py::test_whatever_stands_in_a_manifest_or_a_record_it_is_passed_over_or_one_line")),
    Fault("any value at any place of a COCO JSON", "read, or one line",
          ("faults/test_coco_json.py::test_any_value_at_any_place_is_read_or_told",
           "faults/test_coco_json.py::test_any_json_is_read_or_told")),
    Fault("random world sizes, batches and restarts", "each image once an epoch",
          ("faults/test_properties.py::test_the_loader_shows_each_image_once_an_epoch_whatever_restarts_and_ranks",)),
]  # fmt: skip


def outcomes(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Test, without parameters -> what each of its last instances noted."""
    last: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        noted = json.loads(line)
        last[noted["test"]] = noted
    found: dict[str, list[dict[str, Any]]] = {}
    for name, noted in last.items():
        found.setdefault(name.removeprefix("tests/").partition("[")[0], []).append(noted)
    return found


def not_run(test: str, instances: list[dict[str, Any]]) -> str:
    """The test, where it was skipped or never started, or how many of its instances were; else nothing."""
    skipped = sum(instance["outcome"] == "skipped" for instance in instances)
    name = f"`{test.rpartition('::')[2]}`"
    if skipped == len(instances):
        return name
    return f"{name} in {skipped} of {len(instances)} instances" if skipped else ""


def row(fault: Fault, noted: dict[str, list[dict[str, Any]]], soak: dict[str, int]) -> str:
    """One line of the table."""
    instances = [instance for test in fault.tests for instance in noted.get(test, [])]
    passed = sum(instance.get("times", 1) for instance in instances if instance["outcome"] == "passed")
    failed = [instance["test"] for instance in instances if instance["outcome"] == "failed"]
    left_out = [words for test in fault.tests if (words := not_run(test, noted.get(test, [])))]
    in_soak = sum(soak.get(name, 0) for name in fault.in_soak)
    times = " + ".join([str(passed), *([f"{in_soak} in the soak"] if in_soak else [])])
    lost = "FAILED: " + ", ".join(failed) if failed else "nothing" if passed or in_soak else "not run yet"
    if left_out and (failed or passed or in_soak):
        lost += "; not run: " + ", ".join(left_out)
    tests = ", ".join(f"`{test.rpartition('::')[2]}` ({test.partition('::')[0]})" for test in fault.tests)
    return f"| {fault.what} | {fault.promise} | {tests} | {times} | {lost} |"


def soak_lines(soak: dict[str, Any]) -> list[str]:
    """What an hour of harm left, lane by lane."""
    rounds = soak["rounds"]
    moments = ", ".join(f"{count} in {moment}" for moment, count in sorted(rounds["moments"].items()))
    lanes = [soak[name] for name in ("distilled", "judged")]
    if broken := [lane["error"] for lane in lanes if "error" in lane]:
        raise SystemExit(f"the soak did not come to its end: {broken}")
    return [
        f"Run on {soak['date']} for {soak['minutes in all']:.0f} minutes ({soak['harmed minutes']:.0f} of them with "
        f"harm), seed {soak['seed']}: {rounds['rounds']} rounds ({moments}), a rank killed in "
        f"{rounds['rounds with a rank killed']} of them; {len(soak['orphans'])} processes left behind. "
        + otherwise(soak["not as promised"]),
        "",
        "| | distillation | classifier |",
        "| --- | --- | --- |",
        *(f"| {what} | {' | '.join(tell(lane) for lane in lanes)} |" for what, tell in SOAK_ROWS.items()),
    ]


def otherwise(shortcomings: list[str]) -> str:
    """What was not as promised, each with how often."""
    if not shortcomings:
        return "All was as promised."
    told = [f"{what} ({times}x)" if times > 1 else what for what, times in Counter(shortcomings).items()]
    return f"Not as promised: {'; '.join(told)}."


def of_memory(*keys: str, form: str) -> Callable[[dict[str, Any]], str]:
    """The same figures of each rank's memory and of its helpers'."""
    return lambda lane: "; ".join(
        f"{who}: {form.format(*(each[key] for key in keys))}" for who, each in lane["memory"].items()
    )


SOAK_ROWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "steps reached; missing; with two different losses": lambda lane: (
        f"{lane['steps']}; {len(lane['steps missing'])}; {len(lane['steps with two losses'])}"
    ),
    "steps done again after a harm": lambda lane: str(lane["steps done again after a harm"]),
    "largest difference from the unbroken run's losses": lambda lane: str(
        lane["largest difference from the unbroken run"]
    ),
    "MLflow runs; each step once": lambda lane: (
        f"{lane['mlflow runs']}; {'yes' if lane['each step once in mlflow'] else 'NO'}"
    ),
    "times that a checkpoint was lost which nobody had spoilt": lambda lane: str(lane["checkpoints went back"]),
    "unfinished files left behind": lambda lane: str(len(lane["temporary files"])),
    "rounds in which a launcher had to end a rank, all at the start": lambda lane: "{}, {}".format(
        lane[ENDED][0], "yes" if lane[ENDED][1] else "NO"
    ),
    "seconds from the harm until all ranks had ended, longest": lambda lane: str(
        lane["seconds until all ranks had ended, longest"]
    ),
    "memory in the unbroken run, MiB at first, at last": of_memory("MiB first", "MiB last", form="{:.0f} to {:.0f}"),
    "steps between": lambda lane: str(lane["memory"]["rank 0"]["steps"]),
    "its growth, KiB a step (95 %)": of_memory("KiB a step", "95 % within +-", form="{:.2f} ± {:.2f}"),
    "in the last half of the time": of_memory(
        "KiB a step, last half", "last half, 95 % within +-", form="{:.2f} ± {:.2f}"
    ),
}
ENDED = "ranks that a launcher had to end, all at the start"


def between(text: str, begin: str, end: str, lines: list[str]) -> str:
    """The text with other lines between two marks."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return "\n".join([before + begin, *lines, end + after])


def main() -> None:
    noted, soak = outcomes(Path(sys.argv[1])), json.loads(Path(sys.argv[2]).read_text())
    rows = [row(fault, noted, soak["rounds"]["faults"]) for fault in FAULTS]
    head = ["| fault | promised | shown by, in `tests/` | times tried | lost |", "| --- | --- | --- | --- | --- |"]
    text = between(DOCUMENT.read_text(), BEGIN, END, [*head, *rows])
    DOCUMENT.write_text(between(text, SOAK_BEGIN, SOAK_END, soak_lines(soak)))


if __name__ == "__main__":
    main()
