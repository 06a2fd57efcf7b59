"""What callers get wrong: TypeError or ValueError that names the argument, and no access outside the buffers."""

import numpy as np
import pytest
import tessera

Q = np.ones((2, 4, 4, 16), np.float32)
K = np.ones((2, 6, 2, 16), np.float32)
BIG_ENDIAN = K.astype(">f4")
UNALIGNED = np.frombuffer(bytearray(4 * K.size + 1), np.float32, K.size, 1).reshape(K.shape)
MANY_HEADS = np.lib.stride_tricks.as_strided(K, (2, 6, 3, 16), K.strides)


class OnGpu:
    """An array of a library whose memory is a GPU's."""

    def __dlpack__(self, **options):
        raise AssertionError("its memory must not be asked for")

    def __dlpack_device__(self):
        return (2, 0)


@pytest.mark.parametrize(
    "args, options, error, text",
    [
        (([[1.0]], K, K), {}, TypeError, "q is a builtins.list"),
        ((Q, None, K), {}, TypeError, "k is a builtins.NoneType"),
        ((OnGpu(), K, K), {}, ValueError, "q is on a device"),
        ((Q.astype(np.float64), K, K), {}, TypeError, "q has dtype float64"),
        ((Q.astype(np.int32), K, K), {}, TypeError, "q has dtype int32"),
        ((Q, K.astype(np.float16), K), {}, TypeError, "k has dtype float16 and q float32"),
        ((Q, BIG_ENDIAN, K), {}, ValueError, "k must be aligned"),
        ((Q, K, UNALIGNED), {}, ValueError, "v must be aligned"),
        ((Q[0], K, K), {}, ValueError, r"q has shape \(4, 4, 16\); it must have 4 dimensions"),
        ((Q, K[:1], K[:1]), {}, ValueError, "k has batch 1; it must be q's batch, 2"),
        ((Q, K, K[:, :5]), {}, ValueError, r"v has shape \(2, 5, 2, 16\)"),
        ((Q, MANY_HEADS, MANY_HEADS), {}, ValueError, "q has 4 heads; they must be a multiple of k's 3 heads"),
        ((Q, K[:, :, :0], K[:, :, :0]), {}, ValueError, "k's 0 heads"),
        ((Q, K[..., :8], K), {}, ValueError, "k has head_dim 8; it must be q's head_dim, 16"),
        ((Q[..., :0], K[..., :0], K), {}, ValueError, "q has head_dim 0; it must be from 1 to 256"),
        ((Q, K, np.ones((2, 6, 2, 257), np.float32)), {}, ValueError, "v has head_dim 257"),
        ((Q, K, K), dict(softmax_scale=float("nan")), ValueError, "softmax_scale=nan must be finite"),
        ((Q, K, K), dict(softmax_scale="big"), TypeError, "softmax_scale is 'big'"),
        ((Q, K, K), dict(dropout_p=1.0), ValueError, "dropout_p=1.0 must be at least 0 and less than 1"),
        ((Q, K, K), dict(dropout_p=-0.1), ValueError, "dropout_p=-0.1"),
        ((Q, K, K), dict(dropout_p=float("nan")), ValueError, "dropout_p=nan"),
        ((Q, K, K), dict(softcap=-1.0), ValueError, "softcap=-1.0 must be at least 0"),
        ((Q, K, K), dict(softcap=1.0, dropout_p=0.5), ValueError, "softcap does not go together with dropout"),
        ((Q, K, K), dict(window_size=(-2, 0)), ValueError, r"window_size=\(-2, 0\)"),
        ((Q, K, K), dict(window_size=3), TypeError, "window_size is 3"),
        ((Q, K, K), dict(alibi_slopes=np.ones(3, np.float32)), ValueError, r"alibi_slopes has shape \(3,\)"),
        ((Q, K, K), dict(alibi_slopes=np.ones(4)), TypeError, "alibi_slopes has dtype float64"),
    ],
)
def test_flash_attn_func(args, options, error, text):
    with pytest.raises(error, match=text):
        tessera.flash_attn_func(*args, **options)


ROWS, KEYS = np.ones((10, 2, 16), np.float32), np.ones((12, 1, 16), np.float32)


@pytest.mark.parametrize(
    "cu_q, cu_k, longest_q, longest_k, error, text",
    [
        ([0, 4, 10], [0, 7, 5], 6, 7, ValueError, r"cu_seqlens_k\[2\]=5 is less than cu_seqlens_k\[1\]=7"),
        ([1, 4, 10], [0, 6, 12], 6, 6, ValueError, r"cu_seqlens_q\[0\]=1 must be 0"),
        ([0, 4, 11], [0, 6, 12], 7, 6, ValueError, r"cu_seqlens_q\[2\]=11 lies behind the tensor's 10 rows"),
        ([0, 4, 10], [0, 6, 13], 6, 7, ValueError, r"cu_seqlens_k\[2\]=13 lies behind the tensor's 12 rows"),
        ([0, 4, 2**31 - 1], [0, 6, 12], 6, 6, ValueError, "lies behind"),
        ([0, 4, 2**40], [0, 6, 12], 6, 6, ValueError, "cu_seqlens_q holds 1099511627776"),
        ([0, 4, 10], [0, 12], 6, 12, ValueError, r"cu_seqlens_k has shape \(2,\)"),
        ([0, 4, 10], [0, 6, 12], 5, 6, ValueError, "max_seqlen_q=5 is less than the longest sequence of cu_seqlens_q, 6"),
        ([0, 4, 10], [0, 6, 12], 6, -1, ValueError, "max_seqlen_k=-1"),
        ([0, 4, 10], [0, 6, 12], 6.0, 6, TypeError, "max_seqlen_q is 6.0"),
        ([0.0, 10.0], [0, 12], 10, 12, TypeError, "cu_seqlens_q has dtype float64"),
    ],
)
def test_varlen(cu_q, cu_k, longest_q, longest_k, error, text):
    with pytest.raises(error, match=text):
        tessera.flash_attn_varlen_func(ROWS, KEYS, KEYS, np.array(cu_q), np.array(cu_k), longest_q, longest_k)


def test_packed_arrays_say_how_many_parts_they_hold():
    with pytest.raises(ValueError, match="qkv has 2 in dimension 2; it must be 3"):
        tessera.flash_attn_qkvpacked_func(np.ones((1, 4, 2, 2, 8), np.float32))
    with pytest.raises(ValueError, match="kv has 3 in dimension 1; it must be 2"):
        cu = np.array([0, 4])
        tessera.flash_attn_varlen_kvpacked_func(ROWS, np.ones((12, 3, 1, 16), np.float32), cu, cu, 4, 4)


@pytest.mark.parametrize(
    "options, error, text",
    [
        (dict(attn_mask=np.ones((3, 6), bool)), ValueError, r"attn_mask has shape \(3, 6\); it must broadcast to \(2, 4, 4, 6\)"),
        (dict(attn_mask=np.ones((1, 2, 4, 4, 6), bool)), ValueError, "must broadcast"),
        (dict(attn_mask=np.ones((4, 6))), TypeError, "attn_mask has dtype float64"),
        (dict(attn_mask=np.ones((4, 6), bool), is_causal=True), ValueError, "attn_mask must be None when is_causal"),
        (dict(enable_gqa=False), ValueError, "enable_gqa=True allows that"),
        (dict(scale=float("inf")), ValueError, "scale=inf"),
    ],
)
def test_sdpa(options, error, text):
    q, k = Q.swapaxes(1, 2), K.swapaxes(1, 2)
    with pytest.raises(error, match=text):
        tessera.scaled_dot_product_attention(q, k, k, **{"enable_gqa": True, **options})


@pytest.mark.parametrize(
    "options, error, text",
    [
        (dict(seqused_k=np.array([6, 7])), ValueError, "seqused_k"),
        (dict(leftpad_k=np.array([-1, 0])), ValueError, "leftpad_k"),
        (dict(seqused_k=np.array([6])), ValueError, "seqused_k has shape"),
        (dict(cu_seqlens_q=np.array([0, 4])), ValueError, "given together"),
        (dict(seed=-1), ValueError, "seed=-1"),
        (dict(offset=2**64), ValueError, "offset=18446744073709551616"),
        (dict(softmax_scale=1e300), ValueError, "scale"),
    ],
)
def test_plain_forward(options, error, text):
    with pytest.raises(error, match=text):
        tessera.attention_forward(Q, K, K, **options)


def test_plain_functions_never_copy():
    with pytest.raises(ValueError, match="k has stride 2 in its last dimension; it must be 1"):
        tessera.attention_forward(Q, np.repeat(K, 2, axis=3)[..., ::2], K)
    with pytest.raises(ValueError, match="q has head_dim 12; it must be a multiple of 8"):
        tessera.attention_forward(Q[..., :12], K[..., :12], K)
    with pytest.raises(ValueError, match="row_stride"):
        tessera.attention_forward(Q, K[:, ::-1], K)
    out, lse = tessera.attention_forward(Q, K, K)
    with pytest.raises(ValueError, match="dout has shape"):
        tessera.attention_backward(out[:, :3], Q, K, K, out, lse)
    with pytest.raises(ValueError, match="lse has shape"):
        tessera.attention_backward(out, Q, K, K, out, lse[:, :3])
    with pytest.raises(TypeError, match="lse has dtype float64"):
        tessera.attention_backward(out, Q, K, K, out, lse.astype(np.float64))


@pytest.mark.parametrize("threads, error", [(-1, ValueError), (2000, ValueError), (1.5, TypeError), (True, TypeError)])
def test_thread_counts(threads, error):
    with pytest.raises(error, match="threads"):
        tessera.set_num_threads(threads)
