"""What lies where in a run's folder (`output_dir`): the names, which several floors share; reads and writes nothing."""

SETTINGS_FILE = "config.yaml"
"""Every setting of the run, as it was resolved; itself a recipe."""
LOG_FILE = "train.log"
DONE = "DONE"
"""What a finished run leaves, for scripts; holds its last step."""

# How it trained
STUDENT_ENGINE_FILE = "deepspeed_student.json"
TEACHER_ENGINES_FILE = "deepspeed_teachers.json"
"""Where there are teachers."""
ENVIRONMENT_FILE = "environment.json"
"""Machine, versions and commit."""
CHANGES_FILE = "code_changes.diff"
"""What its code had that was not committed."""
CLAIM_FILE = "attempt.json"
"""Number of the newest attempt, which alone may write; a family's folder has one too."""
ATTEMPTS_FOLDER = "attempts"
"""The files above of each attempt, in a folder of its number."""

# What is recorded
METRICS_FILE = "metrics.jsonl"
TRACKING_FOLDER = "tracking"
"""What MLflow is still to get, in order."""
RECORDS_FILE = "tracking/records.jsonl"
"""Params, tags, files, data sets, changes of status."""
SYSTEM_FILE = "tracking/system.jsonl"
"""Points of system metrics."""
SHIPPED_FILE = "tracking/shipped.json"
"""Up to which byte of each of them MLflow has it."""
RUN_ID_FILE = "tracking/mlflow_run_id"
PROFILE_FOLDER = "profile"
EVALUATION_FILE = "evaluation.json"
FAILURE_FILE = "failure.txt"
"""In a suite: why its last attempt failed; gone when the next one starts."""
OUTPUT_FILE = "output.log"
"""In a suite: all that the run's processes said."""

# What was learned
CHECKPOINTS_FOLDER = "checkpoints"
LATEST_FILE = "latest"
"""Beside the checkpoints: the name of the newest."""
BACKBONE_FOLDER = "backbone"
"""The encoder; each checkpoint holds one too, and what stands beside it."""
CLASSIFIER_FOLDER = "classifier"
"""Encoder and head, where the run learned labels."""
SEGMENTER_FOLDER = "segmenter"
"""The same, where it learned the classes of pixels."""
DETECTOR_FOLDER = "detector"
"""The same, where it learned objects."""
PUBLISHED = {
    BACKBONE_FOLDER: "encoder",
    CLASSIFIER_FOLDER: "classifier",
    SEGMENTER_FOLDER: "segmenter",
    DETECTOR_FOLDER: "detector",
}
"""Folders with a model that a run, and each of its checkpoints, may hold, and what people call the model."""
PICTURES_FOLDER = "pictures"
EXPORT_FOLDER = "export"
