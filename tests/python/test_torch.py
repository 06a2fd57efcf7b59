"""PyTorch tensors: results, autograd, torch.compile, against PyTorch's own attention. Skipped where torch is absent."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tessera  # noqa: E402

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
torch_sdpa = torch.nn.functional.scaled_dot_product_attention


def make(*shapes, dtype=torch.float32, seed=0, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(grad) for shape in shapes]


def plain(q, k, v, mask=None, dtype=torch.float64, scale=None):
    """The definition over (batch, heads, rows, dim) in `dtype`; mask True: hidden."""
    q, k, v = (x.to(dtype) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(mask, float("-inf"))
    p = torch.softmax(scores, -1)
    return (p.masked_fill(mask.all(-1, keepdim=True), 0.0) if mask is not None else p) @ v


def worst(a, b):
    return (a.double() - b.double()).abs().max().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows, keys", [(113, 203), (1, 147), (127, 513), (217, 64)])
def test_flash_attn_keeps_its_own_tolerance_rule(rows, keys, causal, dtype):
    """Error at most 2x the plain form's in the same dtype, 3x for gradients, plus 1e-5."""
    inputs = make((2, rows, 6, 64), (2, keys, 2, 64), (2, keys, 2, 64), dtype=dtype)
    out = tessera.flash_attn_func(*inputs, causal=causal)
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, dout)
    hidden = torch.ones(rows, keys, dtype=torch.bool).triu(1 + keys - rows) if causal else None
    results = []
    for kind in (torch.float64, dtype):
        o = plain(*(x.transpose(1, 2) for x in inputs), hidden, kind).transpose(1, 2)
        results.append((o, *torch.autograd.grad(o, inputs, dout.to(kind))))
    for name, ours, exact, same in zip(("out", "dq", "dk", "dv"), (out, *grads), *results):
        assert ours.dtype == dtype
        bound = (2 if name == "out" else 3) * worst(same, exact) + 1e-5
        assert worst(ours, exact) <= bound, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal"])
@pytest.mark.parametrize("rows, keys", [(40, 70), (70, 40)])
def test_sdpa_is_pytorchs(rows, keys, kind, dtype):
    q, k, v = make((2, 4, rows, 32), (2, 4, keys, 32), (2, 4, keys, 32), dtype=dtype)
    mask = None
    if kind == "bool":
        mask = torch.rand(2, 1, rows, keys) < 0.7
    elif kind == "float":
        mask = torch.randn(rows, keys).to(dtype)
    options = dict(attn_mask=mask, is_causal=kind == "causal", scale=0.2)
    ours, theirs = tessera.scaled_dot_product_attention(q, k, v, **options), torch_sdpa(q, k, v, **options)
    dout = torch.randn_like(ours)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    limit = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}[dtype]
    assert worst(ours, theirs) <= limit
    for a, b in zip(torch.autograd.grad(ours, (q, k, v), dout), torch.autograd.grad(theirs, (q, k, v), dout)):
        assert a.shape == b.shape and worst(a, b) <= limit


def test_sdpa_gqa_and_three_dimensions():
    q, k, v = make((2, 8, 20, 16), (2, 2, 30, 16), (2, 2, 30, 24))
    ours = tessera.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert worst(ours, torch_sdpa(q, k, v, enable_gqa=True)) <= 2e-6
    q, k, v = make((3, 20, 16), (3, 30, 16), (3, 30, 16))
    mask = torch.rand(3, 20, 30) < 0.5
    assert worst(tessera.scaled_dot_product_attention(q, k, v, mask), torch_sdpa(q, k, v, mask)) <= 2e-6


def test_sdpa_reads_any_layout_without_copies():
    x = torch.randn(2, 30, 3, 4, 16)  # batch, seqlen, qkv, heads, dim
    q, k, v = (x[:, :, i].transpose(1, 2) for i in range(3))
    assert worst(tessera.scaled_dot_product_attention(q, k, v), torch_sdpa(q, k, v)) <= 2e-6


def test_finite_differences():
    """(f(x + h) - f(x - h)) / 2h of the function itself, in float32 with a step that its rounding allows."""
    q, k, v = make((1, 5, 2, 8), (1, 7, 1, 8), (1, 7, 1, 8))
    options = dict(causal=True, softcap=2.0, window_size=(4, 0), alibi_slopes=torch.tensor([0.2, 0.5]))
    weight = torch.randn(1, 5, 2, 8)

    def value():
        return (tessera.flash_attn_func(q, k, v, **options) * weight).double().sum().item()

    grads = torch.autograd.grad((tessera.flash_attn_func(q, k, v, **options) * weight).sum(), (q, k, v))
    step = 1e-2
    for x, grad in zip((q, k, v), grads):
        flat = x.detach().view(-1)
        for at in range(0, flat.numel(), 7):
            kept = flat[at].item()
            flat[at] = kept + step
            above = value()
            flat[at] = kept - step
            below = value()
            flat[at] = kept
            assert abs((above - below) / (2 * step) - grad.view(-1)[at].item()) <= 2e-3


def test_varlen_and_packed_gradients():
    (qkv,) = make((80, 3, 4, 16))
    cu = torch.tensor([0, 30, 30, 75], dtype=torch.int32)
    out = tessera.flash_attn_varlen_qkvpacked_func(qkv, cu, 45, causal=True)
    (grad,) = torch.autograd.grad(out.square().sum(), qkv)
    assert not grad[75:].any() and not out[75:].any()
    for a, b in ((0, 30), (30, 75)):
        (part,) = make((b - a, 3, 4, 16))
        part.data.copy_(qkv[a:b])
        alone = tessera.flash_attn_qkvpacked_func(part[None], causal=True)
        assert torch.equal(alone[0], out[a:b])
        assert torch.equal(torch.autograd.grad(alone.square().sum(), part)[0], grad[a:b])


def test_only_wanted_gradients_and_none_for_the_rest():
    q, k, v = make((1, 9, 2, 16), (1, 9, 2, 16), (1, 9, 2, 16))
    slopes = torch.tensor([0.1, 0.2], requires_grad=True)
    out, lse, s = tessera.flash_attn_func(q.detach(), k, v.detach(), alibi_slopes=slopes, return_attn_probs=True)
    out.sum().backward()
    assert k.grad is not None and slopes.grad is None and q.grad is None
    assert not lse.requires_grad and s.shape == (0,)
    with pytest.raises(ValueError, match="attn_mask requires a gradient"):
        tessera.scaled_dot_product_attention(q, k, v, torch.zeros(2, 2, requires_grad=True))


def test_head_dims_are_padded_inside_autograd():
    q, k, v = make((1, 20, 2, 20), (1, 30, 1, 20), (1, 30, 1, 13))
    out = tessera.flash_attn_func(q, k, v)
    exact = plain(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    dout = torch.randn_like(out)
    assert out.shape == (1, 20, 2, 13) and worst(out, exact) <= 5e-6
    for a, b in zip(torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(exact, (q, k, v), dout.double())):
        assert a.shape == b.shape and worst(a, b) <= 2e-5


def test_dropout_follows_torchs_seed_in_forward_and_backward():
    q, k, v = make((1, 40, 2, 16), (1, 60, 2, 16), (1, 60, 2, 16))
    torch.manual_seed(3)
    out, _, s = tessera.flash_attn_func(q, k, v, dropout_p=0.5, return_attn_probs=True)
    torch.manual_seed(3)
    assert torch.equal(out, tessera.flash_attn_func(q, k, v, dropout_p=0.5))
    assert not torch.equal(out, tessera.flash_attn_func(q, k, v, dropout_p=0.5))
    keep = (s >= 0).double() * 2
    scores = torch.einsum("bihd,bjhd->bhij", q.double() / 4, k.double())
    exact = torch.einsum("bhij,bjhd->bihd", torch.softmax(scores, -1) * keep, v.double())
    dout = torch.randn_like(out)
    assert worst(out, exact) <= 5e-6
    for a, b in zip(torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(exact, (q, k, v), dout.double())):
        assert worst(a, b) <= 2e-5


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_functions_are_whole_graphs(dynamic):
    def layer(q, k, v):
        a = tessera.flash_attn_func(q, k, v, causal=True, window_size=(30, 0))
        b = tessera.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), enable_gqa=True)
        return (a + b.transpose(1, 2)).relu()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (40, 50):
        inputs = make((2, rows, 4, 16), (2, rows, 2, 16), (2, rows, 2, 16), seed=rows)
        out, expected = compiled(*inputs), layer(*inputs)
        assert torch.equal(out, expected)
        ours, theirs = (torch.autograd.grad(x.sum(), inputs) for x in (out, expected))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))


def test_compiled_varlen_dropout_cache_rotary_and_merge():
    q, k, v = make((1, 12, 2, 16), (1, 12, 2, 16), (1, 12, 2, 16), grad=False)
    cu = torch.tensor([0, 5, 12], dtype=torch.int32)
    cos, sin = torch.rand(64, 8), torch.rand(64, 8)

    def step(q, k, v, k_cache, v_cache):
        a = tessera.flash_attn_varlen_func(q[0], k[0], v[0], cu, cu, 7, 7, causal=True)
        b, lse = tessera.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cos, sin, cache_seqlens=3, causal=True, return_softmax_lse=True
        )
        c, _ = tessera.merge_state(b, lse, b, lse)
        d = tessera.apply_rotary_emb(q, cos, sin)
        return a + b[0] + c[0] + d[0]

    caches = [torch.zeros(1, 32, 2, 16) for _ in range(4)]
    out = torch.compile(step, fullgraph=True, backend="aot_eager")(q, k, v, *caches[:2])
    assert torch.equal(out, step(q, k, v, *caches[2:]))
    assert torch.equal(caches[0], caches[2]) and torch.equal(caches[1], caches[3]) and caches[0].any()
    drop = torch.compile(lambda q: tessera.flash_attn_func(q, q, q, 0.5), fullgraph=True, backend="aot_eager")
    assert drop(q).shape == q.shape


def test_operators_pass_torchs_own_check():
    q, k, v = make((1, 6, 2, 8), (1, 9, 1, 8), (1, 9, 1, 8))
    none = [None] * 7
    args = (q, k, v, *none, 0, 0, 0.3, True, -1, -1, 0.0, 0.0)
    torch.library.opcheck(torch.ops.tessera.attention.default, args)
    cos, sin = torch.rand(9, 4), torch.rand(9, 4)
    torch.library.opcheck(torch.ops.tessera.rotary.default, (q, cos, sin, False, 0, None, None, False))
    torch.library.opcheck(torch.ops.tessera.rotary_.default, (q.detach(), cos, sin, False, 0, None, None))


def test_rotary_has_a_gradient_and_writes_in_place():
    (x,) = make((2, 9, 2, 16))
    angle = torch.rand(20, 4)
    cos, sin = angle.cos(), angle.sin()
    out = tessera.apply_rotary_emb(x, cos, sin, seqlen_offsets=torch.tensor([2, 11]))
    dout = torch.randn_like(out)
    (dx,) = torch.autograd.grad(out, x, dout)
    assert abs((out * dout).sum() - (x * dx).sum()) <= 1e-4  # a rotation is linear
    back = tessera.apply_rotary_emb(dout, cos, -sin, seqlen_offsets=torch.tensor([2, 11]))
    assert worst(back, dx) <= 1e-6
    copy = x.detach().clone()
    assert tessera.apply_rotary_emb(copy, cos, sin, inplace=True, seqlen_offsets=torch.tensor([2, 11])) is copy
    assert torch.equal(copy, out)
    (tessera.apply_rotary_emb(x * 1.0, cos, sin, inplace=True) * dout).sum().backward()
    assert x.grad is not None


def test_kvcache_writes_tensors_in_place():
    cache = [torch.zeros(2, 16, 1, 8, dtype=torch.bfloat16) for _ in range(2)]
    q, k, v = make((2, 1, 2, 8), (2, 1, 1, 8), (2, 1, 1, 8), dtype=torch.bfloat16)
    out, lse = tessera.flash_attn_with_kvcache(
        q, *cache, k, v, cache_seqlens=torch.tensor([3, 0], dtype=torch.int32), return_softmax_lse=True
    )
    assert torch.equal(cache[0][0, 3], k[0, 0]) and torch.equal(cache[1][1, 0], v[1, 0])
    assert torch.equal(out[1], v[1].expand(1, 2, 8)) and lse.shape == (2, 2, 1) and not out.requires_grad


def test_numpy_and_torch_agree_bit_for_bit():
    q, k, v = make((2, 33, 4, 32), (2, 65, 2, 32), (2, 65, 2, 32), grad=False)
    ours = tessera.flash_attn_func(q, k, v, causal=True)
    arrays = tessera.flash_attn_func(q.numpy(), k.numpy(), v.numpy(), causal=True)
    assert isinstance(arrays, np.ndarray) and np.array_equal(ours.numpy(), arrays)


def test_bits_do_not_depend_on_the_batch():
    inputs = make((5, 70, 4, 32), (5, 130, 2, 32), (5, 130, 2, 32))
    out = tessera.flash_attn_func(*inputs, causal=True)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    one = [x[3:4].detach().requires_grad_() for x in inputs]
    alone = tessera.flash_attn_func(*one, causal=True)
    assert torch.equal(alone[0], out[3])
    for a, b in zip(torch.autograd.grad(alone.square().sum(), one), grads):
        assert torch.equal(a[0], b[3])


@pytest.mark.parametrize(
    "change, error, text",
    [
        (lambda q, k, v: (q.to("meta"), k, v), ValueError, "q is on the device meta; only cpu and cuda are supported"),
        (lambda q, k, v: (q, k.numpy(), v), TypeError, "k is a numpy.ndarray and q a torch.Tensor"),
        (lambda q, k, v: (q, k.bfloat16(), v), TypeError, "k has dtype bfloat16 and q float32"),
        (lambda q, k, v: (q.double(), k.double(), v.double()), TypeError, "q has dtype float64"),
        (lambda q, k, v: (q, k.to_sparse(), v), ValueError, "k has the layout torch.sparse_coo"),
        (lambda q, k, v: (q, k[..., :8], v), ValueError, "k has head_dim 8"),
    ],
)
def test_mistakes_are_named(change, error, text):
    tensors = make((1, 4, 2, 16), (1, 6, 2, 16), (1, 6, 2, 16), grad=False)
    with pytest.raises(error, match=text):
        tessera.flash_attn_func(*change(*tensors))


def test_lengths_that_int32_cannot_hold_are_refused():
    q, k = make((10, 2, 16), (10, 2, 16), grad=False)
    with pytest.raises(ValueError, match="lies behind the tensor's 10 rows"):
        tessera.flash_attn_varlen_func(q, k, k, torch.tensor([0, 2**32 + 10]), torch.tensor([0, 10]), 10, 10)
