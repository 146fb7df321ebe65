// Attention in one pass, for 16-bit numbers: softmax(Q · Kᵀ · scale) · V of every head, read from where the packed product
// left Q, K and V. The scores never reach memory. A block takes 64 rows, 16 a warp, and goes through the other side in
// tiles of 64 rows in shared memory; products are made by the tensor cores, sums and the softmax are float32. Forward, a
// row's sum is rescaled whenever a larger score comes; what is kept is its log₂ Σ 2ˢ, from which the backward kernels get
// the weights again. Each gradient is summed by one warp in one order, so that every run gives the same bits.
//
// Source: Dao, FlashAttention-2, 2023; the layout of fragments is that of the PTX manual (mma.m16n8k16, ldmatrix).

#include <cuda_bf16.h>
#include <cuda_fp16.h>

using bfloat16 = __nv_bfloat16;
using float16 = __half;
using size = long long;

#define INFINITE __int_as_float(0x7f800000)
#define LOG2_E 1.44269504f

constexpr int ROWS = 64;  // of a tile; 16 a warp
constexpr int PAD = 8;    // numbers; rows of a tile begin in different banks

// What a warp multiplies: 16 × 16 numbers of the left matrix, 16 × 8 of the right one; a thread holds two a register.
struct Left {
    unsigned at[4];
};

__device__ inline void multiply(float (&c)[4], const Left &a, unsigned b0, unsigned b1, bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b0), "r"(b1));
}

__device__ inline void multiply(float (&c)[4], const Left &a, unsigned b0, unsigned b1, float16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b0), "r"(b1));
}

__device__ inline unsigned pair(float low, float high, bfloat16) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *(unsigned *)&both;
}

__device__ inline unsigned pair(float low, float high, float16) {
    __half2 both = __floats2half2_rn(low, high);
    return *(unsigned *)&both;
}

// Four 8 × 8 blocks of shared memory; each lane names a row.
__device__ inline void load(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}

__device__ inline void load_transposed(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
}

__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int warp() { return threadIdx.x / 32; }

// 2ˣ, to float32's precision but for subnormal results, which become 0
__device__ inline float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Copies from memory to shared memory that nobody waits for, until wait().
__device__ inline void copy(void *to, const void *from, bool there) {  // 16 bytes, or zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((unsigned)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(there ? 16 : 0));
}

__device__ inline void wait() {
    asm volatile("cp.async.wait_all;" ::);
    __syncthreads();
}

template <class T, int D>
struct Tile {
    T at[ROWS][D + PAD];

    // Rows first … first + 63 of a matrix with N rows, `step` numbers apart; zeros beyond its end.
    __device__ void fetch(const T *from, size step, int first, int N) {
        for (int i = threadIdx.x; i < ROWS * D / 8; i += blockDim.x) {
            int row = i / (D / 8), column = i % (D / 8) * 8;
            bool there = first + row < N;
            copy(&at[row][column], from + (there ? first + row : 0) * step + column, there);
        }
    }

    // This warp's 16 rows, as left factors.
    __device__ void rows(Left (&a)[D / 16]) const {
#pragma unroll
        for (int k = 0; k < D / 16; k++)
            load(a[k].at, &at[warp() * 16 + lane() % 16][k * 16 + lane() / 16 * 8]);
    }

    // c (16 × 64) = a · tileᵀ. The last tile of a matrix is not full: what it lacks is left out (and the others need
    // not ask, which would keep the compiler from mixing loads and products).
    template <bool FULL>
    __device__ void times_transposed(float (&c)[ROWS / 8][4], const Left (&a)[D / 16], int rows) const {
#pragma unroll
        for (int n = 0; n < ROWS / 8; n += 2) {
#pragma unroll
            for (int i = 0; i < 4; i++) c[n][i] = c[n + 1][i] = 0;
            if (!FULL && n * 8 >= rows) continue;
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                unsigned b[4];
                load(b, &at[n * 8 + lane() % 8 + lane() / 16 * 8][k * 16 + lane() / 8 % 2 * 8]);
                multiply(c[n], a[k], b[0], b[1], T());
                multiply(c[n + 1], a[k], b[2], b[3], T());
            }
        }
    }

    // c (16 × D) += p (16 × 64) · tile; p is rounded to T
    template <bool FULL>
    __device__ void times(float (&c)[D / 8][4], const float (&p)[ROWS / 8][4], int rows) const {
#pragma unroll
        for (int k = 0; k < ROWS / 16; k++) {
            if (!FULL && k * 16 >= rows) continue;
            const float(&p0)[4] = p[2 * k], (&p1)[4] = p[2 * k + 1];
            Left a = {pair(p0[0], p0[1], T()), pair(p0[2], p0[3], T()), pair(p1[0], p1[1], T()), pair(p1[2], p1[3], T())};
#pragma unroll
            for (int n = 0; n < D / 8; n += 2) {
                unsigned b[4];
                load_transposed(b, &at[k * 16 + lane() % 16][n * 8 + lane() / 16 * 8]);
                multiply(c[n], a, b[0], b[1], T());
                multiply(c[n + 1], a, b[2], b[3], T());
            }
        }
    }
};

// Go through two matrices side by side, a tile of each at a time, while the next ones are on their way.
template <class T, int D, class Turn>
__device__ inline void through(Tile<T, D> (&tiles)[2][2], const T *left, size left_step, const T *right,
                               size right_step, int N, bool idle, Turn turn) {
    __syncthreads();  // the block's own rows were read from these tiles
    tiles[0][0].fetch(left, left_step, 0, N), tiles[0][1].fetch(right, right_step, 0, N);
    for (int first = 0, i = 0; first < N; first += ROWS, i ^= 1) {
        wait();
        if (first + ROWS < N) {
            tiles[i ^ 1][0].fetch(left, left_step, first + ROWS, N);
            tiles[i ^ 1][1].fetch(right, right_step, first + ROWS, N);
        }
        if (idle) continue;
        if (first + ROWS <= N)
            turn.template operator()<true>(tiles[i][0], tiles[i][1], first);
        else
            turn.template operator()<false>(tiles[i][0], tiles[i][1], first);
    }
}

// Where this block's head lies: block (image · heads + head) · tiles + tile.
template <int D>
struct Head {
    int heads, N, head, first;
    size image, step, row;  // numbers from row to row of qkv; `row` is the head's first in arrays (images, heads, N)

    __device__ Head(int heads, int N) : heads(heads), N(N) {
        int tiles = (N + ROWS - 1) / ROWS, which = blockIdx.x / tiles;
        image = which / heads, head = which % heads, first = blockIdx.x % tiles * ROWS;
        step = (size)3 * heads * D, row = (size)which * N;
    }
    __device__ size packed(int which) const { return image * N * step + (which * heads + head) * D; }
    __device__ size beside() const { return (image * N * heads + head) * D; }  // in (images, N, heads · D)
    __device__ bool idle() const { return first + warp() * 16 >= N; }          // a warp without rows only helps to fetch
    __device__ int mine(int half) const { return first + warp() * 16 + lane() / 4 + half * 8; }
};

// Write 16 × D sums of a warp to rows `step` apart.
template <class T, int D, class H>
__device__ inline void write(T *to, size step, const H &head, const float (&c)[D / 8][4], const float (&factor)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = head.mine(half);
        if (row >= head.N) continue;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
            *(unsigned *)(to + row * step + n * 8 + lane() % 4 * 2) =
                pair(c[n][2 * half] * factor[half], c[n][2 * half + 1] * factor[half], T());
    }
}

// y = softmax(Q · Kᵀ · scale) · V, and logs (images, heads, N) = log₂ Σ 2ˢ of each row, s = scores · scale · log₂ e
template <class T, int D>
__global__ void attention(const T *qkv, T *y, float *logs, int N, int heads, float scale) {
    __shared__ Tile<T, D> tiles[2][2];
    Head<D> head(heads, N);
    Left q[D / 16];
    tiles[0][0].fetch(qkv + head.packed(0), head.step, head.first, N);
    wait();
    tiles[0][0].rows(q);
    float out[D / 8][4] = {}, largest[2] = {-INFINITE, -INFINITE}, total[2] = {};
    scale *= LOG2_E;
    auto turn = [&]<bool FULL>(const Tile<T, D> &keys, const Tile<T, D> &values, int first) {
        float s[ROWS / 8][4];
        keys.template times_transposed<FULL>(s, q, N - first);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = largest[half];
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    bool there = FULL || first + n * 8 + lane() % 4 * 2 + i % 2 < N;
                    s[n][i] = there ? s[n][i] * scale : -INFINITE;
                    top = fmaxf(top, s[n][i]);
                }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            float shrink = power_of_2(largest[half] - top), sum = 0;
            largest[half] = top;
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) sum += s[n][i] = power_of_2(s[n][i] - top);
            total[half] = total[half] * shrink + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) out[n][2 * half] *= shrink, out[n][2 * half + 1] *= shrink;
        }
        values.template times<FULL>(out, s, N - first);
    };
    const T *keys = qkv + head.packed(1), *values = qkv + head.packed(2);
    through(tiles, keys, head.step, values, head.step, N, head.idle(), turn);
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(~0u, total[half], 1);
        total[half] += __shfl_xor_sync(~0u, total[half], 2);
        factor[half] = 1.f / total[half];
        if (lane() % 4 == 0 && head.mine(half) < N)
            logs[head.row + head.mine(half)] = largest[half] + log2f(total[half]);
    }
    write<T, D>(y + head.beside(), (size)heads * D, head, out, factor);
}

// Σ ∂L/∂y · y of each row and head, which is Σ ∂L/∂A · A: (images, heads, N). A warp a row.
template <class T, int D>
__global__ void row_products(const T *gy, const T *y, float *out, int N, int heads, size rows) {
    size row = ((size)blockIdx.x * blockDim.x + threadIdx.x) / 32;  // of (images, N, heads)
    if (row >= rows) return;
    float sum = 0;
    for (int i = lane(); i < D; i += 32) sum += (float)gy[row * D + i] * (float)y[row * D + i];
    for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
    size head = row % heads, token = row / heads % N, image = row / heads / N;
    if (lane() == 0) out[(image * heads + head) * N + token] = sum;
}

// ∂L/∂Q = ∂L/∂S · K · scale with ∂L/∂S = A · (∂L/∂A − Σ ∂L/∂A · A): a block takes 64 queries through all keys.
template <class T, int D>
__global__ void attention_queries(const T *qkv, const T *gy, const float *logs, const float *dots, T *gqkv, int N,
                                  int heads, float scale) {
    __shared__ Tile<T, D> tiles[2][2];
    Head<D> head(heads, N);
    Left q[D / 16], g[D / 16];
    tiles[0][0].fetch(qkv + head.packed(0), head.step, head.first, N);
    tiles[0][1].fetch(gy + head.beside(), (size)heads * D, head.first, N);
    wait();
    tiles[0][0].rows(q), tiles[0][1].rows(g);
    float log[2], dot[2], gq[D / 8][4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
        bool there = head.mine(half) < N;
        log[half] = there ? logs[head.row + head.mine(half)] : INFINITE;
        dot[half] = there ? dots[head.row + head.mine(half)] : 0.f;
    }
    auto turn = [&]<bool FULL>(const Tile<T, D> &keys, const Tile<T, D> &values, int first) {
        float s[ROWS / 8][4], ga[ROWS / 8][4];
        keys.template times_transposed<FULL>(s, q, N - first);
        values.template times_transposed<FULL>(ga, g, N - first);
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)  // a key beyond the end is a row of zeros, and adds nothing
                s[n][i] = power_of_2(s[n][i] * (scale * LOG2_E) - log[i / 2]) * (ga[n][i] - dot[i / 2]);
        keys.template times<FULL>(gq, s, N - first);
    };
    const T *keys = qkv + head.packed(1), *values = qkv + head.packed(2);
    through(tiles, keys, head.step, values, head.step, N, head.idle(), turn);
    float factor[2] = {scale, scale};
    write<T, D>(gqkv + head.packed(0), head.step, head, gq, factor);
}

// ∂L/∂V = Aᵀ · ∂L/∂O and ∂L/∂K = ∂L/∂Sᵀ · Q · scale: a block takes 64 keys through all queries, everything transposed.
template <class T, int D>
__global__ void attention_keys(const T *qkv, const T *gy, const float *logs, const float *dots, T *gqkv, int N,
                               int heads, float scale) {
    __shared__ Tile<T, D> tiles[2][2];
    Head<D> head(heads, N);
    Left k[D / 16], v[D / 16];
    tiles[0][0].fetch(qkv + head.packed(1), head.step, head.first, N);
    tiles[0][1].fetch(qkv + head.packed(2), head.step, head.first, N);
    wait();
    tiles[0][0].rows(k), tiles[0][1].rows(v);
    float gk[D / 8][4] = {}, gv[D / 8][4] = {};
    auto turn = [&]<bool FULL>(const Tile<T, D> &queries, const Tile<T, D> &gs, int first) {
        float a[ROWS / 8][4], ga[ROWS / 8][4];
        queries.template times_transposed<FULL>(a, k, N - first);
        gs.template times_transposed<FULL>(ga, v, N - first);
#pragma unroll
        for (int n = 0; n < ROWS / 8; n++)
#pragma unroll
            for (int odd = 0; odd < 2; odd++) {
                int query = first + n * 8 + lane() % 4 * 2 + odd;
                bool there = FULL || query < N;
                float log = there ? logs[head.row + query] : INFINITE;  // a weight of 0
                float dot = there ? dots[head.row + query] : 0.f;
#pragma unroll
                for (int i = odd; i < 4; i += 2) {
                    a[n][i] = power_of_2(a[n][i] * (scale * LOG2_E) - log);
                    ga[n][i] = a[n][i] * (ga[n][i] - dot);
                }
            }
        gs.template times<FULL>(gv, a, N - first);
        queries.template times<FULL>(gk, ga, N - first);
    };
    const T *queries = qkv + head.packed(0), *gs = gy + head.beside();
    through(tiles, queries, head.step, gs, (size)heads * D, N, head.idle(), turn);
    float one[2] = {1.f, 1.f}, factor[2] = {scale, scale};
    write<T, D>(gqkv + head.packed(1), head.step, head, gk, factor);
    write<T, D>(gqkv + head.packed(2), head.step, head, gv, one);
}
