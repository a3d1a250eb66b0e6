"""From the record of the latency stage to rows: by length, against score and bytes, and claims."""

import itertools

from ..records import Record
from ..settings import BACKENDS, ENCODERS

STUDENTS = {size: tuple(models) for size, models in ENCODERS.items()}  # teacher and student
NO_RECORD = "not measured: no record of latency"
# ONNX Runtime's operators in an int8 graph, with all linear layers in 8 bits.
IN_8_BITS = ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger")
OF_ATTENTION = ("MatMul", "FusedMatMul", "Softmax")  # products of two activations: in fp32


def rows_at(record: Record, **wanted) -> list[dict]:
    """The measured rows with these values of size, model, backend, threads, batch or length."""
    rows = (row for row in record.measured.extra["rows"] if "p50" in row)
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def not_measured(record: Record) -> list[dict]:
    """What has no time, with the reason: once for each size, backend and reason."""
    keys = ("size", "backend", "threads", "batch", "length", "not_measured")
    rows = [row for row in record.measured.extra["rows"] if "not_measured" in row]
    unique = {tuple(row.get(key) for key in keys): row for row in rows}
    return [{key: row.get(key) for key in keys} for row in unique.values()]


def over_eager(record: Record) -> list[dict]:
    """p50 of our eager model over that of each other backend, at the same point."""
    places = ("size", "model", "threads", "batch", "length")
    eager = {
        tuple(row[key] for key in places): row["p50"]
        for row in rows_at(record, backend="torch_ours")
    }
    return [
        {key: row[key] for key in (*places, "backend")} | {"ratio": eager[point] / row["p50"]}
        for row in rows_at(record)
        if row["backend"] != "torch_ours" and (point := tuple(row[key] for key in places)) in eager
    ]


def operator_rows(record: Record) -> list[dict]:
    """Milliseconds of each operator of each graph; none in records of stage version 2."""
    graphs = record.measured.extra.get("operators", [])
    return [
        {key: row[key] for key in ("size", "model", "backend", "length")}
        | {"operator": name, "milliseconds": milliseconds}
        for row in graphs
        for name, milliseconds in row["milliseconds"].items()
    ]


def int8_shares(record: Record) -> list[dict]:
    """What part of the time of each int8 graph its 8-bit products take, and attention in fp32."""
    rows = []
    for row in record.measured.extra.get("operators", []):
        if row["backend"] == "onnx_int8":
            times = row["milliseconds"]
            parts = {"in_8_bits": IN_8_BITS, "attention": OF_ATTENTION}
            shares = {
                part: sum(times.get(name, 0.0) for name in names) / sum(times.values())
                for part, names in parts.items()
            }
            rows.append({key: row[key] for key in ("size", "model", "length")} | shares)
    return rows


def student_faster(record: Record) -> list[dict]:
    """Teacher's p50 over the student's at each point and backend; 60 % faster is a ratio of 1.6."""
    places = ("size", "backend", "threads", "batch", "length")
    found: dict[tuple, dict] = {}
    for row in rows_at(record):
        found.setdefault(tuple(row[key] for key in places), {})[row["model"]] = row["p50"]
    rows = []
    for point, times in found.items():
        teacher, student = STUDENTS[point[0]]
        if len(times) == 2:
            ratio = times[teacher] / times[student]
            rows.append(dict(zip(places, point), ratio=ratio))
    return rows


def pareto_rows(told: dict, record: Record | None) -> list[dict]:
    """Score against milliseconds (batch 1, 128 tokens, one thread) and bytes.

    `told`: `tables.summary` of the recipe whose scores these are. Its teacher and the models of
    its student's shape, by their mean over the tasks of the macro and on the first task in int8;
    their int8 forms on the latter only. Times are those of the model of the same depth and size
    (paper or study) with random weights; None without a record of latency.
    """
    size = "paper" if told["scale"] == "paper" else "study"
    scores = {(row["model"], row["task"]): row["over_seeds"]["mean"] for row in told["rows"]}
    labels = {row["model"]: row["label"] for row in told["rows"]}
    means = {row["model"]: row["mean"] for row in told["macro"]}
    task = told["int8"][0]["task"] if told["int8"] else None
    files = {(row["model"], row["form"]): row for row in told["int8"] if row["task"] == task}
    known = {told["teacher"], told["student"]}
    given = {row["name"] for row in told["models"] if row["weights"]} - known
    rows = []
    for model, (form, backend) in itertools.product(
        [name for name in labels if name not in given],
        {"torch_fp32": "torch_ours", "onnx_int8": "onnx_int8"}.items(),
    ):
        fp32, shape = form == "torch_fp32", STUDENTS[size][model != told["teacher"]]
        own = files.get((model, form))
        score = own["score"] if own else scores.get((model, task)) if fp32 else None
        macro = means.get(model) if fp32 else None
        if score is None and macro is None:
            continue
        file = own or files.get((told["student"], form))  # the control has the student's shape
        point = {"model": shape, "backend": backend, "threads": 1, "batch": 1, "length": 128}
        times = rows_at(record, size=size, **point) if record else []
        rows.append(
            {
                "model": model,
                "label": labels[model],
                "form": form,
                "task": task,
                "score": score,
                "macro": macro,
                "milliseconds": times[0]["p50"] if times else None,
                "bytes": file["bytes"] if file else None,
            }
        )
    return rows


def on_device_rows(record: Record, printed: dict[str, float]) -> list[dict]:
    """What the paper printed of a phone beside what comes nearest here: never the same.

    `printed`: megabytes as `phone_size`, the teacher's time over the student's as `phone_speed`.
    Nearest of all files of paper size, and of all ratios at batch 1 and paper size. Another
    machine and another task.
    """
    files = [row for row in record.measured.extra["starts"] if row["size"] == "paper"]
    names = dict(zip(STUDENTS["paper"], ("BERT-base", "DistilBERT-base"), strict=True))
    megabytes = {
        f"{names[row['model']]}, {BACKENDS[row['backend']]}": row["bytes"] / 1e6 for row in files
    }
    ratios = {
        f"{BACKENDS[row['backend']]}, {row['length']} tokens, threads: {row['threads']}": (
            row["ratio"]
        )
        for row in student_faster(record)
        if row["size"] == "paper" and row["batch"] == 1
    }
    rows = []
    for claim, values in (("phone_size", megabytes), ("phone_speed", ratios)):
        if values:
            paper = printed[claim]
            name = min(values, key=lambda key: abs(values[key] - paper))
            away = values[name] / paper - 1
            rows.append(
                {"claim": claim, "paper": paper, "nearest": name}
                | {"here": values[name], "away": away, "verdict": "not the paper's device"}
            )
    return rows
