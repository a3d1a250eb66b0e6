"""The fused loss against the plain one: values, gradients, memory and products."""

import pytest
import torch
import torch.nn.functional as F
from plain_loss import triple_loss_plain
from torch.utils._python_dispatch import TorchDispatchMode

from distilbert_kit.losses import (
    COLUMN_MULTIPLE,
    ROWS_PER_THREAD,
    Projection,
    fused_triple_loss,
)
from distilbert_kit.models.config import create_model_config
from distilbert_kit.models.model import DistilBERTForMaskedLM

VOCABULARY, TEMPERATURE = 37, 2.0
NAMES = ("transformed", "weight", "bias")


def heads(tokens=24, student_width=8, teacher_width=8, dtype=torch.float32, masked=0.3, seed=0):
    """Student and teacher (transformed, weight, bias), and labels, of random non-padding tokens."""
    draw = torch.Generator().manual_seed(seed)

    def head(width):
        shapes = ((tokens, width), (VOCABULARY, width), (VOCABULARY,))
        return [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]

    labels = torch.randint(VOCABULARY, (tokens,), generator=draw)
    labels[torch.rand(tokens, generator=draw) >= masked] = -100
    student = [x.requires_grad_() for x in head(student_width)]
    return student, head(teacher_width), labels


def plain(student, teacher, labels, ce_scale, mlm_scale, temperature=TEMPERATURE):
    """The plain loss on full logits; its cosine term is switched off."""
    logits, taught = (F.linear(x, weight, bias) for x, weight, bias in (student, teacher))
    same = torch.ones(1, 2)
    scales = (ce_scale, mlm_scale, 0.0)
    return triple_loss_plain(logits, taught, same, same, labels, temperature, *scales)


def fused(student, teacher, labels, ce_scale, mlm_scale, chunk_size=5, **options):
    options = {"temperature": TEMPERATURE} | options
    return fused_triple_loss(
        Projection(*student),
        Projection(*teacher),
        labels,
        ce_scale=ce_scale,
        mlm_scale=mlm_scale,
        chunk_size=chunk_size,
        **options,
    )


def gradients(loss, student):
    return torch.autograd.grad(loss, student)


def assert_equal_losses(ours, reference, student, tolerance):
    (loss, terms), (expected, expected_terms) = ours, reference
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
    for name, value in terms.items():
        assert not value.requires_grad
        torch.testing.assert_close(value, expected_terms[name], rtol=tolerance, atol=0)
    for name, mine, theirs in zip(NAMES, gradients(loss, student), gradients(expected, student)):
        error = float((mine - theirs).norm() / theirs.norm())
        assert error < tolerance, f"gradient of {name} differs by {error:.1e}"


@pytest.mark.parametrize("chunk_size", [1, 7, 24, 1000])
@pytest.mark.parametrize("masked", [0.3, 1.0])
@pytest.mark.parametrize("widths", [(8, 8), (6, 11)])
def test_fused_equals_plain(chunk_size, masked, widths):
    student, teacher, labels = heads(24, *widths, masked=masked)
    case = (student, teacher, labels, 0.4, 0.3)
    assert_equal_losses(fused(*case, chunk_size=chunk_size), plain(*case), student, 1e-5)


@pytest.mark.parametrize("masked", [0.3, 1.0])
def test_padded_vocabulary_as_on_a_gpu(masked, monkeypatch):
    student, teacher, labels = heads(24, masked=masked)
    assert len(student[1]) % 16
    monkeypatch.setitem(COLUMN_MULTIPLE, "cpu", 16)
    case = (student, teacher, labels, 0.4, 0.3)
    assert_equal_losses(fused(*case), plain(*case), student, 1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 8.0])
def test_fused_equals_plain_in_double_precision(temperature):
    student, teacher, labels = heads(dtype=torch.float64)
    case = (student, teacher, labels, 0.4, 0.3)
    reference = plain(*case, temperature=temperature)
    assert_equal_losses(fused(*case, temperature=temperature), reference, student, 1e-12)


def test_fused_gradient_by_finite_differences():
    student, teacher, labels = heads(4, 3, 5, torch.float64, masked=0.5)
    direction = [torch.randn_like(x) for x in student]
    analytic = sum(
        (g * d).sum()
        for g, d in zip(gradients(fused(student, teacher, labels, 0.4, 0.3)[0], student), direction)
    )
    step = 1e-5
    ends = [
        fused([x + s * d for x, d in zip(student, direction)], teacher, labels, 0.4, 0.3)[0]
        for s in (step, -step)
    ]
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), analytic, rtol=1e-7, atol=0)


@pytest.mark.parametrize("ce_scale", [5 / 3000, 0.0])
def test_large_vocabulary_in_several_groups_of_rows(ce_scale):
    """More rows in a chunk than one cache-sized group, the masked rows ending inside a group."""
    student, teacher, labels = heads(3000, masked=0.15, seed=1)
    assert int((labels != -100).sum()) % ROWS_PER_THREAD
    case = (student, teacher, labels, ce_scale, 2 / 450)
    assert_equal_losses(fused(*case, chunk_size=1024), plain(*case), student, 1e-5)


@pytest.mark.parametrize("loss", [plain, fused])
def test_micro_batches_with_global_denominators_add_up_to_the_whole(loss):
    student, teacher, labels = heads(24)
    scales = (5 / 24, 2 / int((labels != -100).sum()))
    whole, _ = loss(student, teacher, labels, *scales)
    parts = 0.0
    for rows in (slice(0, 3), slice(3, 20), slice(20, 24)):
        part = ([student[0][rows], *student[1:]], [teacher[0][rows], *teacher[1:]], labels[rows])
        parts = parts + loss(*part, *scales)[0]
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=0)
    for mine, theirs in zip(gradients(parts, student), gradients(whole, student)):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 6])
def test_no_masked_token_and_no_token_at_all(tokens):
    student, teacher, labels = heads(tokens, masked=0.0)
    for loss in (plain, fused):
        total, terms = loss(student, teacher, labels, 0.4, 0.3)
        assert terms["mlm"] == 0
        assert all(torch.isfinite(g).all() for g in gradients(total, student))
        if tokens == 0:
            total, terms = loss(student, teacher, labels, 0.4, 0.3)
            assert total == 0 == terms["ce"]
            assert not any(g.any() for g in gradients(total, student))


@pytest.mark.parametrize("scales, left", [((0.4, 0.0), "ce"), ((0.0, 0.3), "mlm")])
def test_a_term_of_zero_weight_is_skipped(scales, left):
    student, teacher, labels = heads()
    assert_equal_losses(
        fused(student, teacher, labels, *scales),
        plain(student, teacher, labels, *scales),
        student,
        1e-5,
    )
    # Nothing that belongs to the other term is read: neither NaN nor labels that there are not.
    if left == "ce":
        labels = labels.masked_fill(labels != -100, VOCABULARY)
    else:
        teacher[0] = torch.full_like(teacher[0], float("nan"))
        with torch.no_grad():
            student[0][labels == -100] = float("nan")
    loss, terms = fused(student, teacher, labels, *scales)
    assert set(terms) == {left}
    assert torch.isfinite(loss)
    _, weight, bias = gradients(loss, student)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()


def test_both_weights_zero():
    student, teacher, labels = heads()
    loss, terms = fused(student, teacher, labels, 0.0, 0.0)
    assert loss == 0 and not terms
    assert not any(g.any() for g in gradients(loss, student))


def test_bf16_autocast_is_near_fp32_and_keeps_dtypes():
    """bf16 keeps 8 bits: 2 % of the norm of a gradient is a few roundings of 2^-9 each."""
    student, teacher, labels = heads(200, 32, 32)
    case = (student, teacher, labels, 1 / 200, 1 / 60)
    with torch.autocast("cpu", torch.bfloat16):
        loss, terms = fused(*case, chunk_size=64)
    assert loss.dtype == terms["ce"].dtype == torch.float32
    assert [g.dtype for g in gradients(loss, student)] == [torch.float32] * 3
    with torch.autocast("cpu", torch.bfloat16):
        ours = fused(*case, chunk_size=64)
    assert_equal_losses(ours, plain(*case), student, 2e-2)


@pytest.mark.parametrize("scales", [(1e-7, 0.0), (0.0, 1e-7), (1e-7, 1e-7)])
def test_gradients_of_small_scales_do_not_underflow_in_fp16(scales):
    """Its smallest number is 6e-8: a term of many tokens has a scale near that."""
    case = (*heads(24), *scales)
    with torch.autocast("cpu", torch.float16):
        ours = fused(*case)
    assert_equal_losses(ours, plain(*case), case[0], 1e-2)


def test_partial_gradients_and_inference():
    student, teacher, labels = heads()
    expected = gradients(plain(student, teacher, labels, 0.4, 0.3)[0], student)
    for index in range(3):
        only = [x.detach().requires_grad_(i == index) for i, x in enumerate(student)]
        loss, _ = fused(only, teacher, labels, 0.4, 0.3)
        (3 * loss).backward()
        torch.testing.assert_close(only[index].grad, 3 * expected[index], rtol=1e-4, atol=1e-5)
        assert all(x.grad is None for i, x in enumerate(only) if i != index)
    with torch.no_grad():
        assert not fused(student, teacher, labels, 0.4, 0.3)[0].requires_grad


def test_second_backward_is_refused():
    student, teacher, labels = heads()
    loss, _ = fused(student, teacher, labels, 0.4, 0.3)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_every_parameter_of_a_model_with_tied_embeddings_gets_the_plain_gradient():
    config = create_model_config("tiny")
    student, teacher = DistilBERTForMaskedLM(config).eval(), DistilBERTForMaskedLM(config).eval()
    ids = torch.randint(5, config.vocab_size, (3, 10))
    real = torch.arange(10) < torch.tensor([[10], [4], [7]])
    labels = ids.masked_fill(~real, -100)
    labels[:, ::2] = -100
    decoders, rows = [], []
    for model in (student, teacher):
        rows.append(model.encoder(ids, real).last_hidden_state[real])
        decoders.append((model.head(rows[-1]), model.decoder_weight, model.decoder_bias))
    taught = [x.detach() for x in decoders[1]]
    ours, _ = fused(decoders[0], taught, labels[real], 5 / 21, 2 / 9)
    logits = [F.linear(x, weight, bias) for x, weight, bias in (decoders[0], taught)]
    scales = (5 / 21, 2 / 9, 0.0)
    expected, _ = triple_loss_plain(*logits, *rows, labels[real], TEMPERATURE, *scales)
    parameters = [x for x in student.parameters() if x.requires_grad]
    kept = torch.autograd.grad(expected, parameters, retain_graph=True, materialize_grads=True)
    ours.backward()
    for parameter, gradient in zip(parameters, kept):
        found = torch.zeros_like(gradient) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else (result,)
        sizes = [x.numel() for x in made if isinstance(x, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_tokens_times_vocabulary(dtype):
    student, teacher, labels = heads(500, 2, 2, dtype=dtype)
    assert (
        plain_peak(student, teacher, labels) >= 500 * VOCABULARY
    )  # the recorder sees the naive one
    with LargestTensor() as recorder:
        fused(student, teacher, labels, 0.4, 0.3, chunk_size=64)[0].backward()
    assert recorder.numel <= 64 * VOCABULARY


class Products(TorchDispatchMode):
    """Records the dtype of every matrix product."""

    def __init__(self):
        super().__init__()
        self.dtypes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_):
            self.dtypes.append(result.dtype)
        return result


@pytest.mark.parametrize(
    ("scales", "needs", "a_chunk"),
    [
        ((0.4, 0.3), True, 4),  # both projections, the gradients of rows and weight
        ((0.4, 0.3), False, 2),
        ((0.4, 0.0), True, 4),
        ((0.0, 0.3), True, 3),
        ((0.0, 0.3), False, 1),
    ],
)
def test_no_product_is_repeated_or_needless(scales, needs, a_chunk):
    student, teacher, labels = heads(23, masked=1.1)
    constant = [x.detach() for x in student]
    for given, enabled in [(student, True)] if needs else [(student, False), (constant, True)]:
        with torch.set_grad_enabled(enabled), Products() as recorder:
            fused(given, teacher, labels, *scales, chunk_size=5)
        assert len(recorder.dtypes) == 5 * a_chunk  # 23 tokens are 5 chunks


def test_products_are_in_the_dtype_of_autocast():
    student, teacher, labels = heads()
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), Products() as recorder:
            fused(student, teacher, labels, 0.4, 0.3)
        assert set(recorder.dtypes) == {dtype}


def plain_peak(student, teacher, labels):
    with LargestTensor() as recorder:
        plain(student, teacher, labels, 0.4, 0.3)
    return recorder.numel


def test_wrong_arguments_are_refused():
    student, teacher, labels = heads()
    for options in ({"temperature": 0.0}, {"chunk_size": 0}):
        with pytest.raises(ValueError, match="must be"):
            fused(student, teacher, labels, 0.4, 0.3, **options)
    with pytest.raises(ValueError, match="ce needs a teacher"):
        fused_triple_loss(Projection(*student), None, labels, 2.0, 0.4, 0.3)


@pytest.mark.parametrize("loss", [plain, fused])
def test_squared_temperature_keeps_the_gradient_scale(loss):
    student, teacher, labels = heads(dtype=torch.float64)
    norms = [
        float(
            gradients(loss(student, teacher, labels, 1.0, 0.0, temperature=t)[0], student)[0].norm()
        )
        for t in (50.0, 100.0, 1000.0)
    ]
    assert norms == pytest.approx([norms[-1]] * 3, rel=0.1)
    # The limit is the gradient of half the squared difference of centred logits, over V.
    logits, taught = (F.linear(x, w, b) for x, w, b in (student, teacher))
    difference = (logits - taught) - (logits - taught).mean(-1, keepdim=True)
    limit = gradients(difference.square().sum() / (2 * VOCABULARY), student)[0]
    assert norms[-1] == pytest.approx(float(limit.norm()), rel=0.01)
