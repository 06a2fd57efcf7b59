"""CUDA tensors: the same functions on torch's current stream, against PyTorch in float64. Skipped without a GPU."""

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import tessera  # noqa: E402
from tessera import _core  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not _core.cuda_devices().isdigit(),
    reason=f"no GPU: torch.cuda.is_available() is {torch.cuda.is_available()}, tessera says '{_core.cuda_devices()}'",
)

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def make(*shapes, dtype=torch.bfloat16, seed=0, grad=False):
    generator = torch.Generator("cuda").manual_seed(seed)
    return [torch.randn(s, generator=generator, device="cuda").to(dtype).requires_grad_(grad) for s in shapes]


def plain(q, k, v, hidden=None, dtype=torch.float64):
    """The definition over (batch, rows, heads, dim) in `dtype`; hidden: True where a key is not seen."""
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, float("-inf"))
    p = torch.softmax(scores, -1)
    return ((p.masked_fill(hidden.all(-1, keepdim=True), 0.0) if hidden is not None else p) @ v).transpose(1, 2)


def causal_mask(rows, keys):
    return torch.ones(rows, keys, dtype=torch.bool, device="cuda").triu(1 + keys - rows)


def worst(a, b):
    return (a.double() - b.double()).abs().max().item()


def bound(dtype):
    """Of results, beside the plain form's own error: f32 runs as tf32."""
    return 2e-2 if dtype == torch.float32 else 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows, keys, heads, kv_heads, dim", [(113, 203, 6, 2, 64), (512, 512, 4, 4, 128), (217, 64, 2, 1, 96)])
def test_forward_and_gradients(rows, keys, heads, kv_heads, dim, causal, dtype):
    inputs = make((2, rows, heads, dim), (2, keys, kv_heads, dim), (2, keys, kv_heads, dim), dtype=dtype, grad=True)
    out = tessera.flash_attn_func(*inputs, causal=causal)
    assert out.device == inputs[0].device and out.dtype == dtype
    dout = torch.randn_like(out)
    grads = torch.autograd.grad(out, inputs, dout)
    hidden = causal_mask(rows, keys) if causal else None
    results = []
    for kind in (torch.float64, dtype):
        o = plain(*inputs, hidden, kind)
        results.append((o, *torch.autograd.grad(o, inputs, dout.to(kind))))
    for name, ours, exact, same in zip(("out", "dq", "dk", "dv"), (out, *grads), *results):
        limit = (2 if name == "out" else 3) * worst(same, exact) + bound(dtype)
        assert worst(ours, exact) <= limit, name


def test_runs_on_the_current_stream():
    q, k, v = make((1, 2048, 16, 64), (1, 2048, 16, 64), (1, 2048, 16, 64))
    want = tessera.flash_attn_func(q, k, v)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = q.clone()  # behind the sleep: any other stream would read it too early
        out = tessera.flash_attn_func(late, k, v)
    stream.synchronize()
    assert torch.equal(out, want)


def test_varlen_is_each_sequence_alone():
    lengths = [3, 130, 1, 64]
    rows = sum(lengths)
    q, k, v = make((rows, 4, 64), (rows, 2, 64), (rows, 2, 64))
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32, device="cuda")
    out = tessera.flash_attn_varlen_func(q, k, v, cu, cu, max(lengths), max(lengths), causal=True)
    start = 0
    for length in lengths:
        one = slice(start, start + length)
        alone = plain(q[None, one], k[None, one], v[None, one], causal_mask(length, length))
        assert worst(out[one], alone[0]) <= 2e-2
        start += length


def test_sdpa_with_masks():
    q, k, v = make((2, 4, 40, 64), (2, 4, 70, 64), (2, 4, 70, 64))
    for mask in (torch.rand(2, 1, 40, 70, device="cuda") < 0.7, torch.randn(40, 70, device="cuda").bfloat16()):
        ours = tessera.scaled_dot_product_attention(q, k, v, mask)
        theirs = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(),
                                                                  mask if mask.dtype == torch.bool else mask.double())
        assert worst(ours, theirs) <= 3e-2


def test_dropout_is_the_cpus():
    shapes = ((1, 33, 2, 64), (1, 50, 2, 64), (1, 50, 2, 64))
    q, k, v = (x.float() for x in make(*shapes))
    options = dict(dropout_p=0.3, seed=5, offset=7)
    gpu, _ = tessera.attention_forward(q, k, v, **options)
    cpu, _ = tessera.attention_forward(q.cpu(), k.cpu(), v.cpu(), **options)
    assert worst(gpu.cpu(), cpu) <= 1e-2  # one entry kept on one side alone is off by far more


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_paged_cache_is_appended_to_and_read(dtype):
    batch, heads, kv_heads, dim, page, pages = 3, 8, 2, 128, 16, 8
    lengths = torch.tensor([5, 40, 100], dtype=torch.int32, device="cuda")
    k_cache, v_cache = make(*[(batch * pages, page, kv_heads, dim)] * 2, dtype=dtype, seed=1)
    table = torch.randperm(batch * pages, device="cuda").to(torch.int32).reshape(batch, pages)
    q, k, v = make((batch, 1, heads, dim), *[(batch, 1, kv_heads, dim)] * 2, dtype=dtype, seed=2)
    before = k_cache.clone()
    out = tessera.flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=lengths, block_table=table, causal=True)
    for b, length in enumerate(lengths.tolist()):
        rows = [x[table[b].long()].reshape(-1, kv_heads, dim)[None, : length + 1] for x in (k_cache, v_cache)]
        assert torch.equal(rows[0][0, length], k[b, 0])
        assert worst(out[b : b + 1], plain(q[b : b + 1], *rows)) <= 2e-2
    assert (before != k_cache).flatten(2).any(-1).sum().item() == batch


@pytest.mark.parametrize("page", [16, 20])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_rows_over_a_paged_cache(dtype, page):
    heads, kv_heads, dim, v_dim = 4, 2, 128, 64
    lengths, rows = [300, 40, 129], [100, 1, 129]
    pages = -(-max(lengths) // page)
    table = torch.randperm(3 * pages, device="cuda").to(torch.int32).reshape(3, pages)
    k_cache, v_cache = make((3 * pages, page, kv_heads, dim), (3 * pages, page, kv_heads, v_dim), dtype=dtype, seed=1)
    (q,) = make((sum(rows), heads, dim), dtype=dtype, seed=2)
    ends = [torch.tensor([0, *x], device="cuda").cumsum(0).to(torch.int32) for x in (rows, lengths)]
    out = tessera.flash_attn_varlen_func(q, k_cache, v_cache, *ends, max(rows), max(lengths), causal=True, block_table=table)
    for b, (own, its) in enumerate(zip(q.split(rows), out.split(rows))):
        k, v = (x[table[b].long()].reshape(-1, kv_heads, x.shape[-1])[None, : lengths[b]] for x in (k_cache, v_cache))
        assert worst(its[None], plain(own[None], k, v, causal_mask(rows[b], lengths[b]))) <= 2e-2, b


def test_captured_graphs_replay_on_new_data():
    q, k, v = make((2, 256, 4, 64), (2, 256, 4, 64), (2, 256, 4, 64), grad=False)
    mask = torch.rand(2, 4, 256, 256, device="cuda") < 0.5
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # no call before it: scratch comes from the graph's own memory
        causal = tessera.flash_attn_func(q, k, v, causal=True)
        masked = tessera.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
    for seed in (3, 4):
        for x, new in zip((q, k, v), make(q.shape, k.shape, v.shape, seed=seed)):
            x.copy_(new)
        graph.replay()
        assert torch.equal(causal, tessera.flash_attn_func(q, k, v, causal=True))
        eager = tessera.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
        assert torch.equal(masked, eager)


def test_dropout_in_a_graph_is_refused():
    q, k, v = make((1, 64, 2, 64), (1, 64, 2, 64), (1, 64, 2, 64))
    tessera.flash_attn_func(q, k, v, dropout_p=0.5)
    with pytest.raises(RuntimeError, match="every replay would drop the same"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            tessera.flash_attn_func(q, k, v, dropout_p=0.5)


def test_torch_compile_takes_it_whole():
    def layer(x, k, v):
        return tessera.flash_attn_func(x * 2, k, v, causal=True).float() * 3

    q, k, v = make((1, 128, 4, 64), (1, 128, 4, 64), (1, 128, 4, 64), grad=True)
    want = layer(q, k, v)
    got = torch.compile(layer, fullgraph=True)(q, k, v)
    assert worst(got, want) <= 1e-6
    dout = torch.randn_like(want)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), dout), torch.autograd.grad(want, (q, k, v), dout)):
        assert worst(a, b) <= 5e-2


def test_nothing_is_copied():
    qkv = make((2, 512, 3, 8, 64))[0]
    tessera.flash_attn_qkvpacked_func(qkv)
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = tessera.flash_attn_qkvpacked_func(qkv)
    lse = 2 * 8 * 512 * 4
    assert torch.cuda.max_memory_allocated() - held <= out.numel() * 2 + lse + 4096


@pytest.mark.parametrize(
    "change, error, text",
    [
        (lambda q, k, v: (q, k.cpu(), v), ValueError, "k is on cpu and q on cuda:0; they must be on one device"),
        (lambda q, k, v: (q.cpu(), k, v), ValueError, "k is on cuda:0 and q on cpu"),
        (lambda q, k, v: (q, k.half(), v), TypeError, "k has dtype float16 and q bfloat16"),
        (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), ValueError, "heads"),
    ],
)
def test_mistakes_are_named(change, error, text):
    with pytest.raises(error, match=text):
        tessera.flash_attn_func(*change(*make((1, 8, 2, 64), (1, 8, 2, 64), (1, 8, 2, 64))))


def test_arrays_of_another_device_are_named():
    q, k, v = make((8, 2, 64), (8, 2, 64), (8, 2, 64))
    cu = torch.tensor([0, 8], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens_q is on cpu and q on cuda:0"):
        tessera.flash_attn_varlen_func(q, k, v, cu, cu, 8, 8)
    with pytest.raises(ValueError, match="alibi_slopes is on cpu and q on cuda:0"):
        tessera.flash_attn_func(q[None], k[None], v[None], alibi_slopes=torch.ones(2))


def test_misaligned_memory_is_refused_before_anything_runs():
    flat = make((2 * 8 * 2 * 64 + 1,))[0]
    q = flat[1 : 1 + 8 * 2 * 64].reshape(1, 8, 2, 64)
    k = flat[: 8 * 2 * 64].reshape(1, 8, 2, 64)
    with pytest.raises((ValueError, NotImplementedError), match="q.*16"):
        tessera.flash_attn_func(q, k, k)
    torch.cuda.synchronize()


def test_rotary_is_the_cpus_and_has_a_gradient():
    (x,) = make((2, 9, 3, 64), grad=True)
    angles = torch.arange(20)[:, None] * 0.1 ** torch.linspace(0, 2, 32)[None]
    cos, sin = angles.cos().cuda(), angles.sin().cuda()
    offsets = torch.tensor([0, 11], device="cuda")
    out = tessera.apply_rotary_emb(x, cos, sin, seqlen_offsets=offsets)
    (grad,) = torch.autograd.grad(out, x, torch.ones_like(out))
    y = x.detach().cpu().requires_grad_()
    want = tessera.apply_rotary_emb(y, cos.cpu(), sin.cpu(), seqlen_offsets=offsets.cpu())
    assert torch.equal(out.cpu(), want)
    assert torch.equal(grad.cpu(), torch.autograd.grad(want, y, torch.ones_like(want))[0])
    with pytest.raises(ValueError, match="cos is on cpu and x on cuda:0"):
        tessera.apply_rotary_emb(x, cos.cpu(), sin.cpu())


def test_parts_are_joined():
    q, k, v = make((2, 40, 4, 64), (2, 100, 4, 64), (2, 100, 4, 64))
    whole, lse = tessera.attention_forward(q, k, v)
    parts = [tessera.attention_forward(q, k[:, s], v[:, s]) for s in (slice(0, 30), slice(30, 100))]
    out, joined = tessera.merge_state(*parts[0], *parts[1])
    assert worst(out, whole) <= 2e-2 and worst(joined, lse) <= 1e-4


def shared_prefixes(batch=12, heads=8, kv_heads=2, dim=128, page=64, shared=1024, seed=1, dtype=torch.bfloat16):
    """Caches, a block table whose sequences begin with the same blocks, and lengths (host copies of both)."""
    lengths = torch.tensor([shared + 100 + 37 * b for b in range(batch)], dtype=torch.int32)
    pages, common = 2048 // page, shared // page
    generator = torch.Generator().manual_seed(seed)
    table = torch.randperm(batch * pages, generator=generator).to(torch.int32).reshape(batch, pages)
    table[:, :common] = table[0, :common]
    k_cache, v_cache = make(*[(batch * pages, page, kv_heads, dim)] * 2, dtype=dtype, seed=seed)
    return heads, k_cache, v_cache, table, lengths


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window_size": (700, -1)},
        {"softcap": 3.0},
        {"alibi_slopes": [0.5**h for h in range(8)]},
        {"cache_leftpad": [7 * b for b in range(12)]},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("dim, dtype", [(128, torch.bfloat16), (96, torch.bfloat16), (128, torch.float32)], ids=str)
def test_a_prefix_tree_gives_the_same_bits(dim, dtype, options):
    heads, k_cache, v_cache, table, lengths = shared_prefixes(dim=dim, dtype=dtype)
    kinds = {"alibi_slopes": torch.float32, "cache_leftpad": torch.int32}
    options = {name: torch.tensor(x, dtype=kinds[name], device="cuda") if name in kinds else x for name, x in options.items()}
    (q,) = make((12, 1, heads, dim), dtype=dtype, seed=2)
    where = dict(cache_seqlens=lengths.cuda(), block_table=table.cuda(), return_softmax_lse=True)
    want, want_lse = tessera.flash_attn_with_kvcache(q, k_cache, v_cache, **where, **options)
    for share in (True, False, "always"):
        plan = tessera.CacheTreePlan(heads, k_cache, v_cache, table, lengths, share=share, **options)
        out, lse = plan.attend(q, k_cache, v_cache, **where)
        assert torch.equal(out, want) and torch.equal(lse, want_lse), (share, plan.explain())
        reads = plan.reads()
        assert reads["tiles"] <= reads["unshared"] and (share != "always" or reads["shared_tiles"] > 0), plan.explain()
    alone = [x[table[0].cuda().long()].reshape(-1, 2, dim)[None, : lengths[0]] for x in (k_cache, v_cache)]
    if not options:
        assert worst(want[:1], plain(q[:1], *alone)) <= 2e-2


def test_a_prefix_tree_appends_and_rotates():
    heads, k_cache, v_cache, table, lengths = shared_prefixes()
    q, k, v = make((12, 1, heads, 128), (12, 1, 2, 128), (12, 1, 2, 128), seed=3)
    angles = torch.arange(2048)[:, None] * 0.1 ** torch.linspace(0, 2, 64)[None]
    tables = dict(rotary_cos=angles.cos().cuda(), rotary_sin=angles.sin().cuda(), rotary_interleaved=False)
    where = dict(cache_seqlens=lengths.cuda(), block_table=table.cuda())
    caches = [(k_cache.clone(), v_cache.clone()) for _ in range(2)]
    want = tessera.flash_attn_with_kvcache(q, *caches[0], k, v, **tables, **where)
    plan = tessera.CacheTreePlan(heads, k_cache, v_cache, table, lengths, seqlen_new=1, share="always")
    out = plan.attend(q, *caches[1], k, v, **tables, **where)
    assert torch.equal(out, want)
    assert torch.equal(caches[0][0], caches[1][0]) and torch.equal(caches[0][1], caches[1][1])


def test_a_captured_prefix_tree_lasts_while_sequences_grow():
    heads, k_cache, v_cache, table, lengths = shared_prefixes()
    (q,) = make((12, 1, heads, 128), seed=4)
    table_on_gpu, now = table.cuda(), lengths.cuda()
    plan = tessera.CacheTreePlan(heads, k_cache, v_cache, table, lengths, share="always", reserve=200)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = plan.attend(q, k_cache, v_cache, cache_seqlens=now, block_table=table_on_gpu)
    for grown in (0, 3, 200):
        assert plan.covers(lengths + grown)
        now.copy_(lengths + grown)
        graph.replay()
        want = tessera.flash_attn_with_kvcache(q, k_cache, v_cache, cache_seqlens=now, block_table=table_on_gpu)
        assert torch.equal(out, want), grown
    late = lengths.clone()
    late[5] += 500
    assert not plan.covers(late)
    now.copy_(late)
    graph.replay()
    assert out[5].isnan().all() and not out[:5].isnan().any() and not out[6:].isnan().any()


def test_mistakes_in_a_prefix_tree_are_named():
    heads, k_cache, v_cache, table, lengths = shared_prefixes()
    (q,) = make((12, 1, heads, 128))
    bad = table.clone()
    bad[2, 1] = k_cache.shape[0]
    with pytest.raises(ValueError, match="block_table=384 of sequence 2 must be from 0 to 383"):
        tessera.CacheTreePlan(heads, k_cache, v_cache, bad, lengths)
    with pytest.raises(ValueError, match="cache_leftpad is on cpu and k_cache on cuda:0"):
        tessera.CacheTreePlan(heads, k_cache, v_cache, table, lengths, cache_leftpad=lengths)
    plan = tessera.CacheTreePlan(heads, k_cache, v_cache, table, lengths, share="always")
    where = dict(cache_seqlens=lengths.cuda(), block_table=table.cuda())
    for change, text in [
        (dict(block_table=table), "block_table is on cpu and q on cuda:0"),
        (dict(cache_seqlens=lengths), "cache_seqlens is on cpu and q on cuda:0"),
        (dict(cache_seqlens=1000), "cache_seqlens=1000 of sequence 0 must be from 1024 to"),
    ]:
        with pytest.raises(ValueError, match=text):
            plan.attend(q, k_cache, v_cache, **{**where, **change})
    with pytest.raises(ValueError, match="the plan is for bfloat16 on cuda:0"):
        plan.attend(q.cpu(), k_cache.cpu(), v_cache.cpu(), **where)
    with pytest.raises(ValueError, match="its stream is being captured"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            tessera.CacheTreePlan(heads, k_cache, v_cache, table, lengths)


def test_the_cpus_prefix_tree_refuses_cuda_tensors():
    tree = tessera.PrefixTree(num_blocks=4, kv_heads=2, head_dim=64)
    sequence = tree.sequence([1, 2, 3])
    step = tree.step([sequence], [[1, 2, 3]])
    (q,) = make((3, 2, 64))
    with pytest.raises(ValueError, match="q is on the device cuda:0; only cpu is supported here"):
        tessera.tree_attention(q, step, k=q, v=q)


def test_after_out_of_memory_the_process_goes_on():
    q, k, v = make((1, 64, 2, 64), (1, 64, 2, 64), (1, 64, 2, 64))
    huge = torch.empty(1, dtype=torch.bfloat16, device="cuda").expand(2**40)
    with pytest.raises((torch.OutOfMemoryError, MemoryError)):
        huge.clone()
    assert tessera.flash_attn_func(q, k, v).shape == q.shape
