// The GPU's kernels. Each is one pass over memory; numbers are read as T, computed in float32 and written as they are to
// be kept. A sum belongs to one warp or block and has one order: no atomics, so that every run gives the same bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using bfloat16 = __nv_bfloat16;
using float16 = __half;
using size = long long;

#define LEAST __int_as_float(0xff800000)  // −∞; NVRTC has no <cmath>

__device__ inline size thread() { return (size)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline size threads() { return (size)gridDim.x * blockDim.x; }

// Numbers that a thread reads and writes at once: 16 bytes of them, or what is left over at the end.
template <class T, int LENGTH>
struct alignas(LENGTH * sizeof(T)) Pack {
    static constexpr int length = LENGTH;
    T at[LENGTH];
};

template <class P, class T>
__device__ inline P load(P, const T *x, size i) { return *(const P *)(x + i); }

template <class P, class T>
__device__ inline void store(T *x, size i, P pack) { *(P *)(x + i) = pack; }

// Call f(i, pack) for all numbers of an array, the pack that begins at i; the array begins on 16 bytes.
template <class T, class F>
__device__ inline void each(size count, F f) {
    constexpr int length = 16 / sizeof(T);
    size whole = count / length * length;
    for (size i = thread() * length; i < whole; i += threads() * length) f(i, Pack<T, length>());
    for (size i = whole + thread(); i < count; i += threads()) f(i, Pack<T, 1>());
}

__device__ inline float sum_over_warp(float x) {
    for (int lane = 16; lane; lane /= 2) x += __shfl_xor_sync(~0u, x, lane);
    return x;
}

// The sum (or the largest) of one number a thread, over a block; every thread gets it.
template <class Combine>
__device__ inline float over_block(float x, float neutral, Combine combine) {
    __shared__ float parts[32];
    for (int lane = 16; lane; lane /= 2) x = combine(x, __shfl_xor_sync(~0u, x, lane));
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? parts[threadIdx.x % 32] : neutral;
    for (int lane = 16; lane; lane /= 2) x = combine(x, __shfl_xor_sync(~0u, x, lane));
    __syncthreads();  // so that the next call may write its parts
    return x;
}

__device__ inline float sum_over_block(float x) {
    return over_block(x, 0.f, [](float a, float b) { return a + b; });
}

__device__ inline float max_over_block(float x) {
    return over_block(x, LEAST, [](float a, float b) { return fmaxf(a, b); });
}

// ------------------------------------------------------------------------------------------------------------- gelu

// Φ(x), the normal distribution
__device__ inline float gate(float x) { return 0.5f * (1.f + erff(x * 0.70710678f)); }

template <class T>
__global__ void gelu(const T *x, T *y, size count) {
    each<T>(count, [&](size i, auto pack) {
        auto v = load(pack, x, i), out = v;
        for (int j = 0; j < v.length; j++) out.at[j] = (T)((float)v.at[j] * gate(v.at[j]));
        store(y, i, out);
    });
}

// ∂L/∂x = ∂L/∂y · (Φ(x) + x · Φ′(x))
template <class T>
__global__ void gelu_backward(const T *x, const T *gy, T *gx, size count) {
    each<T>(count, [&](size i, auto pack) {
        auto v = load(pack, x, i), g = load(pack, gy, i);
        for (int j = 0; j < v.length; j++) {
            float a = v.at[j];
            g.at[j] = (T)((float)g.at[j] * (gate(a) + a * 0.39894228f * __expf(-0.5f * a * a)));
        }
        store(gx, i, g);
    });
}

// ---------------------------------------------------------------------------------------------------------- astype

template <class X, class Y>
__global__ void astype(const X *x, Y *y, size count) {
    constexpr int length = 8;
    size whole = count / length * length;
    for (size i = thread() * length; i < whole; i += threads() * length) {
        auto from = load(Pack<X, length>(), x, i);
        Pack<Y, length> to;
        for (int j = 0; j < length; j++) to.at[j] = (Y)(float)from.at[j];
        store(y, i, to);
    }
    for (size i = whole + thread(); i < count; i += threads()) y[i] = (Y)(float)x[i];
}

// ---------------------------------------------------------------------------------------------------------- dropout

// A 64-bit number that looks random, of any other: the mixing function of SplitMix64 (Steele, Lea & Flood 2014).
__device__ inline unsigned long long scrambled(unsigned long long x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// 1/(1 − p) where something survives, else 0. The key of the call travels with it, that of the step lies in memory,
// where a graph finds another one each time.
template <class T>
__global__ void survivors(T *out, float p, unsigned long long key, const unsigned long long *step, size count) {
    key = scrambled(key ^ scrambled(*step));
    for (size i = thread(); i < count; i += threads()) {
        float chance = (scrambled(key ^ scrambled(i)) >> 40) * 0x1p-24f;  // in [0, 1)
        out[i] = (T)(chance >= p ? 1.f / (1.f - p) : 0.f);
    }
}

// ------------------------------------------------------------------------------------------------------- layer norm

// Call f(i) where each pack of a warp's row begins. Numbers are read by fours where the width allows (PER = 4), else one
// by one.
template <int PER, class F>
__device__ inline void along_row(int width, F f) {
    for (int i = threadIdx.x % 32 * PER; i < width; i += 32 * PER) f(i);
}

// What is left of a row's norm when a thread has summed its numbers: y = (x − mean) · rstd · weight + bias, mean and rstd.
template <int PER, class X, class Y>
__device__ inline void norm_row(float sum, const X *x, const float *weight, const float *bias, float eps, Y *y,
                                float *mean, float *rstd, int width) {
    float m = sum_over_warp(sum) / width;
    float squares = 0;
    along_row<PER>(width, [&](int i) {
        auto v = load(Pack<X, PER>(), x, i);
        for (int j = 0; j < PER; j++) squares += ((float)v.at[j] - m) * ((float)v.at[j] - m);
    });
    float r = rsqrtf(sum_over_warp(squares) / width + eps);
    if (threadIdx.x % 32 == 0) *mean = m, *rstd = r;
    along_row<PER>(width, [&](int i) {
        auto v = load(Pack<X, PER>(), x, i);
        auto w = load(Pack<float, PER>(), weight, i), b = load(Pack<float, PER>(), bias, i);
        Pack<Y, PER> out;
        for (int j = 0; j < PER; j++) out.at[j] = (Y)(((float)v.at[j] - m) * r * w.at[j] + b.at[j]);
        store(y, i, out);
    });
}

// A warp a row: y = (x − mean) · rstd · weight + bias, and the row's mean and rstd.
template <class X, class Y, int PER>
__global__ void layer_norm(const X *x, const float *weight, const float *bias, float eps, Y *y, float *mean,
                           float *rstd, size rows, int width) {
    size row = thread() / 32;
    if (row >= rows) return;
    x += row * width;
    float sum = 0;
    along_row<PER>(width, [&](int i) {
        auto v = load(Pack<X, PER>(), x, i);
        for (int j = 0; j < PER; j++) sum += (float)v.at[j];
    });
    norm_row<PER>(sum, x, weight, bias, eps, y + row * width, mean + row, rstd + row, width);
}

// s = x + branch, and the same of s. A thread reads again only what it has written itself.
template <class B, class Y, int PER>
__global__ void add_layer_norm(const float *x, const B *branch, const float *weight, const float *bias, float eps,
                               float *s, Y *y, float *mean, float *rstd, size rows, int width) {
    size row = thread() / 32;
    if (row >= rows) return;
    x += row * width, branch += row * width, s += row * width;
    float sum = 0;
    along_row<PER>(width, [&](int i) {
        auto v = load(Pack<float, PER>(), x, i);
        auto b = load(Pack<B, PER>(), branch, i);
        for (int j = 0; j < PER; j++) v.at[j] += (float)b.at[j], sum += v.at[j];
        store(s, i, v);
    });
    norm_row<PER>(sum, s, weight, bias, eps, y + row * width, mean + row, rstd + row, width);
}

// With n = (x − mean)·rstd and g = ∂L/∂y·weight, write(i, numbers) gets ∂L/∂x = rstd · (g − mean g − n · mean(g·n)). The
// sums over rows of ∂L/∂y·n and ∂L/∂y are made elsewhere (norm_columns).
template <int PER, class X, class Y, class F>
__device__ inline void norm_row_backward(const Y *gy, const X *x, const float *weight, float m, float r, int width,
                                         F write) {
    float sum = 0, product = 0;
    along_row<PER>(width, [&](int i) {
        auto v = load(Pack<X, PER>(), x, i);
        auto g = load(Pack<Y, PER>(), gy, i);
        auto w = load(Pack<float, PER>(), weight, i);
        for (int j = 0; j < PER; j++) {
            float scaled = (float)g.at[j] * w.at[j];
            sum += scaled, product += scaled * ((float)v.at[j] - m) * r;
        }
    });
    sum = sum_over_warp(sum) / width, product = sum_over_warp(product) / width;
    along_row<PER>(width, [&](int i) {
        auto v = load(Pack<X, PER>(), x, i);
        auto g = load(Pack<Y, PER>(), gy, i);
        auto w = load(Pack<float, PER>(), weight, i);
        Pack<float, PER> out;
        for (int j = 0; j < PER; j++)
            out.at[j] = r * ((float)g.at[j] * w.at[j] - sum - ((float)v.at[j] - m) * r * product);
        write(i, out);
    });
}

template <class T, int PER>
__device__ inline void store_as(T *x, size i, Pack<float, PER> numbers) {
    Pack<T, PER> out;
    for (int j = 0; j < PER; j++) out.at[j] = (T)numbers.at[j];
    store(x, i, out);
}

template <class X, class Y, int PER>
__global__ void layer_norm_backward(const Y *gy, const X *x, const float *weight, const float *mean, const float *rstd,
                                    X *gx, size rows, int width) {
    size row = thread() / 32, start = row * width;
    if (row >= rows) return;
    norm_row_backward<PER>(gy + start, x + start, weight, mean[row], rstd[row], width,
                           [&](int i, auto out) { store_as(gx, start + i, out); });
}

// The same of s = x + branch, and to it ∂L/∂s as it came to the sum itself (gs, null where nothing came): the gradient of x
// and of branch, each in its numbers. gx may be null, and gbranch too, where the other is enough.
template <class B, class Y, int PER>
__global__ void add_layer_norm_backward(const float *gs, const Y *gy, const float *s, const float *weight,
                                        const float *mean, const float *rstd, float *gx, B *gbranch, size rows,
                                        int width) {
    size row = thread() / 32, start = row * width;
    if (row >= rows) return;
    norm_row_backward<PER>(gy + start, s + start, weight, mean[row], rstd[row], width, [&](int i, auto out) {
        if (gs) {
            auto beside = load(out, gs, start + i);
            for (int j = 0; j < PER; j++) out.at[j] += beside.at[j];
        }
        if (gx) store(gx, start + i, out);
        if (gbranch) store_as(gbranch, start + i, out);
    });
}

// Sums over rows, in rounds: each block (32 × 8 threads) sums a stretch of rows, for 32 · PER columns, and the next launch
// sums the stretches. f(sums, row, column) adds PER numbers to each of COUNT sums.
template <int PER, int COUNT, class F>
__device__ inline void sum_stretch(float *out, size rows, int width, size stretch, F f) {
    __shared__ float parts[8][COUNT * PER][32];
    int column = (blockIdx.x * 32 + threadIdx.x) * PER;
    size first = blockIdx.y * stretch, last = first + stretch < rows ? first + stretch : rows;
    float sums[COUNT][PER] = {};
    if (column < width)
        for (size row = first + threadIdx.y; row < last; row += 8) f(sums, row, column);
    for (int k = 0; k < COUNT; k++)
        for (int j = 0; j < PER; j++) parts[threadIdx.y][k * PER + j][threadIdx.x] = sums[k][j];
    __syncthreads();
    if (column >= width) return;
    for (int which = threadIdx.y; which < COUNT * PER; which += 8) {
        float sum = 0;
        for (int i = 0; i < 8; i++) sum += parts[i][which][threadIdx.x];
        out[((size)blockIdx.y * COUNT + which / PER) * width + column + which % PER] = sum;
    }
}

// Σ x over the rows of (rows, width)
template <class T, int PER>
__global__ void sum_rows(const T *x, float *out, size rows, int width, size stretch) {
    sum_stretch<PER, 1>(out, rows, width, stretch, [&](float(&sums)[1][PER], size row, int column) {
        auto v = load(Pack<T, PER>(), x, row * width + column);
        for (int j = 0; j < PER; j++) sums[0][j] += (float)v.at[j];
    });
}

// The gradients of LayerNorm's weight and bias, Σ ∂L/∂y · n and Σ ∂L/∂y: (2, width) for each stretch
template <class X, class Y, int PER>
__global__ void norm_columns(const Y *gy, const X *x, const float *mean, const float *rstd, float *out, size rows,
                             int width, size stretch) {
    sum_stretch<PER, 2>(out, rows, width, stretch, [&](float(&sums)[2][PER], size row, int column) {
        auto g = load(Pack<Y, PER>(), gy, row * width + column);
        auto v = load(Pack<X, PER>(), x, row * width + column);
        for (int j = 0; j < PER; j++) {
            sums[0][j] += (float)g.at[j] * ((float)v.at[j] - mean[row]) * rstd[row];
            sums[1][j] += (float)g.at[j];
        }
    });
}

// --------------------------------------------------------------------------------------------------------- attention

// A block a row of scores s (rows, step), of which `width` count: a = softmax(s); what lies beyond is set to 0.
template <class T>
__global__ void softmax(const float *s, T *a, int width, int step) {
    s += (size)blockIdx.x * step, a += (size)blockIdx.x * step;
    float largest = LEAST, sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) largest = fmaxf(largest, s[i]);
    largest = max_over_block(largest);
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += __expf(s[i] - largest);
    float scale = 1.f / sum_over_block(sum);
    for (int i = threadIdx.x; i < step; i += blockDim.x)
        a[i] = (T)(i < width ? __expf(s[i] - largest) * scale : 0.f);
}

// ∂L/∂S = A · (∂L/∂A − Σ ∂L/∂A · A) · scale
template <class T>
__global__ void softmax_backward(const T *a, const float *ga, T *gs, float scale, int width, int step) {
    size row = (size)blockIdx.x * step;
    a += row, ga += row, gs += row;
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += (float)a[i] * ga[i];
    sum = sum_over_block(sum);
    for (int i = threadIdx.x; i < step; i += blockDim.x)
        gs[i] = (T)(i < width ? (float)a[i] * (ga[i] - sum) * scale : 0.f);
}

// ------------------------------------------------------------------------------------------------------ cross-entropy

// A block a row: −Σ target · log p, with log p = (x − largest) − log Σ exp(x − largest). What the backward pass needs is
// kept: the largest, the logarithm, and Σ target. A class of probability 0 that is no target adds nothing, not 0 · −∞.
extern "C" __global__ void cross_entropy(const float *x, const float *target, float *loss, float *kept, int classes) {
    x += (size)blockIdx.x * classes, target += (size)blockIdx.x * classes, kept += blockIdx.x * 3;
    float largest = LEAST, sum = 0, wanted = 0, crossed = 0;
    for (int i = threadIdx.x; i < classes; i += blockDim.x) largest = fmaxf(largest, x[i]);
    largest = max_over_block(largest);
    for (int i = threadIdx.x; i < classes; i += blockDim.x) sum += expf(x[i] - largest), wanted += target[i];
    float log_sum = logf(sum_over_block(sum));
    wanted = sum_over_block(wanted);
    for (int i = threadIdx.x; i < classes; i += blockDim.x) {
        float log_p = x[i] - largest - log_sum;
        if (target[i] != 0 || isfinite(log_p)) crossed += target[i] * log_p;
    }
    crossed = sum_over_block(crossed);
    if (threadIdx.x == 0) loss[blockIdx.x] = -crossed, kept[0] = largest, kept[1] = log_sum, kept[2] = wanted;
}

// ∂L/∂x = ∂L/∂loss · (p · Σ target − target), ∂L/∂target = −∂L/∂loss · log p; gtarget may be null.
extern "C" __global__ void cross_entropy_backward(const float *gy, const float *x, const float *target,
                                                  const float *kept, float *gx, float *gtarget, int classes) {
    size row = (size)blockIdx.x * classes;
    kept += blockIdx.x * 3;
    for (int i = threadIdx.x; i < classes; i += blockDim.x) {
        float log_p = x[row + i] - kept[0] - kept[1];
        gx[row + i] = gy[blockIdx.x] * (expf(log_p) * kept[2] - target[row + i]);
        if (gtarget) gtarget[row + i] = -gy[blockIdx.x] * log_p;
    }
}

// The address of every head's matrix in up to eight arrays. Array j begins at base[j]; its head h of image b lies
// b · per_image[j] + h · per_head[j] bytes on. out is (arrays, images, heads).
struct Places {
    size base[8], per_image[8], per_head[8];
};

extern "C" __global__ void addresses(Places places, size *out, int images, int heads) {
    int i = thread(), j = blockIdx.y;
    if (i < images * heads)
        out[(size)j * images * heads + i] =
            places.base[j] + (i / heads) * places.per_image[j] + (i % heads) * places.per_head[j];
}

// ------------------------------------------------------------------------------------------------------ flat buffers

// The numbers of a step lie in memory, so that a graph finds others there each time.
struct Numbers {
    float at[8];
};

extern "C" __global__ void set_numbers(Numbers numbers, float *out) { out[threadIdx.x] = numbers.at[threadIdx.x]; }

extern "C" __global__ void adamw(float *p, const float *g, float *m, float *v, const float *numbers, size count) {
    float decay = numbers[0], lr = numbers[1], beta1 = numbers[2], beta2 = numbers[3], eps = numbers[4];
    float correction1 = numbers[5], root2 = sqrtf(numbers[6]);
    for (size i = thread(); i < count; i += threads()) {
        float gi = g[i], mi = m[i], vi = v[i];
        mi += (1.f - beta1) * (gi - mi);
        vi = beta2 * vi + (1.f - beta2) * gi * gi;
        m[i] = mi, v[i] = vi;
        p[i] = p[i] * (1.f - decay) - lr / correction1 * mi / (sqrtf(vi) / root2 + eps);
    }
}

// Σ x² of a stretch for each block, in double.
extern "C" __global__ void square_sum(const float *x, double *out, size count) {
    __shared__ double parts[256];
    double sum = 0;
    for (size i = thread(); i < count; i += threads()) sum += (double)x[i] * x[i];
    parts[threadIdx.x] = sum;
    for (int half = 128; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
    }
    if (threadIdx.x == 0) out[blockIdx.x] = parts[0];
}

extern "C" __global__ void ema(float *shadow, const float *p, const float *share, size count) {
    float by = *share;
    for (size i = thread(); i < count; i += threads()) shadow[i] += by * (p[i] - shadow[i]);
}
