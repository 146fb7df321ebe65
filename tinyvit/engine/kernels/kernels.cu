// The GPU's kernels. Each is one pass over memory; numbers are read as T, computed in float32 and written as they are to
// be kept. A row (a token, or a row of attention weights) belongs to one block, so that no sum needs atomics and every
// run gives the same bits.

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

// ------------------------------------------------------------------------------------------------------- layer norm

// A block a row: y = (x − mean) · rstd · weight + bias, and the row's mean and rstd.
template <class X, class Y>
__global__ void layer_norm(const X *x, const float *weight, const float *bias, float eps, Y *y, float *mean,
                           float *rstd, int width) {
    size row = blockIdx.x;
    x += row * width, y += row * width;
    float sum = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += (float)x[i];
    float m = sum_over_block(sum) / width;
    float squares = 0;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float d = (float)x[i] - m;
        squares += d * d;
    }
    float r = rsqrtf(sum_over_block(squares) / width + eps);
    if (threadIdx.x == 0) mean[row] = m, rstd[row] = r;
    for (int i = threadIdx.x; i < width; i += blockDim.x) y[i] = (Y)(((float)x[i] - m) * r * weight[i] + bias[i]);
}

// With n = (x − mean)·rstd and g = ∂L/∂y·weight: ∂L/∂x = rstd · (g − mean g − n · mean(g·n)). A block takes rows one
// after another and keeps its sums of ∂L/∂y·n and ∂L/∂y for each column: `partial` (blocks, 2, width).
template <class X, class Y>
__global__ void layer_norm_backward(const Y *gy, const X *x, const float *weight, const float *mean, const float *rstd,
                                    X *gx, float *partial, size rows, int width) {
    extern __shared__ float columns[];  // (2, width): this block's sums
    for (int i = threadIdx.x; i < 2 * width; i += blockDim.x) columns[i] = 0;
    for (size row = blockIdx.x; row < rows; row += gridDim.x) {
        const X *xs = x + row * width;
        const Y *gs = gy + row * width;
        float m = mean[row], r = rstd[row], sum = 0, product = 0;
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            float n = ((float)xs[i] - m) * r, g = (float)gs[i];
            columns[i] += g * n, columns[width + i] += g;
            g *= weight[i];
            sum += g, product += g * n;
        }
        sum = sum_over_block(sum) / width, product = sum_over_block(product) / width;
        for (int i = threadIdx.x; i < width; i += blockDim.x) {
            float n = ((float)xs[i] - m) * r;
            gx[row * width + i] = (X)(r * ((float)gs[i] * weight[i] - sum - n * product));
        }
    }
    for (int i = threadIdx.x; i < 2 * width; i += blockDim.x) partial[(size)blockIdx.x * 2 * width + i] = columns[i];
}

// The sums of the columns of x (rows, width), in two rounds: each block sums a stretch of rows, for 32 columns.
template <class T>
__global__ void sum_rows(const T *x, float *out, size rows, int width, size stretch) {
    __shared__ float parts[32][33];
    int column = blockIdx.x * 32 + threadIdx.x;
    size first = blockIdx.y * stretch, last = first + stretch < rows ? first + stretch : rows;
    float sum = 0;
    if (column < width)
        for (size row = first + threadIdx.y; row < last; row += blockDim.y) sum += (float)x[row * width + column];
    parts[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        for (int i = 1; i < blockDim.y; i++) sum += parts[i][threadIdx.x];
        out[(size)blockIdx.y * width + column] = sum;
    }
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

// numbers: lr · weight_decay, lr, β₁, β₂, eps, 1 − β₁ᵗ, 1 − β₂ᵗ, in memory, where a graph finds those of its step.
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

// Up to eight numbers to memory: they travel with the launch, so that nobody waits and nothing is overwritten too soon.
struct Numbers {
    float at[8];
};

extern "C" __global__ void keep(Numbers numbers, float *out) { out[threadIdx.x] = numbers.at[threadIdx.x]; }

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

extern "C" __global__ void ema(float *shadow, const float *p, float share, size count) {
    for (size i = thread(); i < count; i += threads()) shadow[i] += share * (p[i] - shadow[i]);
}
