// CUDA's language on a CPU, for tests: the kernels as they stand are compiled by an ordinary C++ compiler, and every thread
// of a block is a fiber. A fiber runs until it must wait for its warp (a shuffle, a product of the tensor cores) or for
// its block; blocks follow one another. A warp or a block of which some wait at one place and some at another never goes
// on, and says so.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // blocks follow one another: one at a time has it
#define __expf expf

using std::isfinite;

struct __nv_bfloat16 {
    unsigned short bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float x) {  // to the nearest, and to even
        unsigned whole;
        memcpy(&whole, &x, 4);
        bits = x != x ? 0x7fff : (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
    }
    operator float() const {
        unsigned whole = (unsigned)bits << 16;
        float x;
        memcpy(&x, &whole, 4);
        return x;
    }
};

struct __half {
    _Float16 value;
    __half() = default;
    __half(float x) : value(x) {}
    operator float() const { return value; }
};

struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

struct __half2 {
    __half x, y;
};

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }

struct Place {
    unsigned x = 0, y = 0, z = 0;
};
static Place threadIdx, blockIdx, blockDim, gridDim;

namespace cpu {

enum State { RUNNING, AT_WARP, AT_BLOCK, DONE };

struct Warp {
    float a[32][8], b[32][4];  // what each lane gives to a product of the tensor cores
    const void *row[32];
    float slot[32];
};

// One that has begun goes on by a jump: a switch of contexts asks the system, each time.
struct Fiber {
    jmp_buf here;
    Place place;
    State state = RUNNING;
    bool begun = false;
    std::vector<char> stack = std::vector<char>(1 << 18);
};

static std::vector<Fiber> fibers(1024);  // the largest block; they are kept for the next one
static std::vector<Warp> warps(32);
static jmp_buf scheduler;
static size_t now;  // the fiber that runs
static void (*body)();

static int lane() { return now % 32; }
static Warp &warp() { return warps[now / 32]; }

static void meet(State where) {
    fibers[now].state = where;
    if (!_setjmp(fibers[now].here)) _longjmp(scheduler, 1);
    threadIdx = fibers[now].place;
}

static void entry() {
    for (;;) {
        threadIdx = fibers[now].place;
        body();
        meet(DONE);
    }
}

static void resume(Fiber &fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    static ucontext_t context;
    fiber.begun = true;
    getcontext(&context);
    context.uc_stack = {fiber.stack.data(), 0, fiber.stack.size()}, context.uc_link = nullptr;
    makecontext(&context, entry, 0);
    setcontext(&context);
}

// Let those of [first, last) that wait at `where` go on, if nobody runs any more; those that are done are not waited for.
static bool release(size_t first, size_t last, State where) {
    bool any = false;
    for (size_t i = first; i < last; i++) {
        if (fibers[i].state == RUNNING || (where == AT_BLOCK && fibers[i].state == AT_WARP)) return false;
        if (where == AT_WARP && fibers[i].state == AT_BLOCK) return false;
        any |= fibers[i].state == where;
    }
    for (size_t i = first; any && i < last; i++)
        if (fibers[i].state == where) fibers[i].state = RUNNING;
    return any;
}

static void run_block() {
    size_t count = (size_t)blockDim.x * blockDim.y;
    for (size_t i = 0; i < count; i++)
        fibers[i].place = {unsigned(i % blockDim.x), unsigned(i / blockDim.x), 0}, fibers[i].state = RUNNING;
    for (bool left = true; left;) {
        left = false;
        for (now = 0; now < count; now++)
            if (fibers[now].state == RUNNING) resume(fibers[now]);
        bool moved = false;
        for (size_t first = 0; first < count; first += 32) moved |= release(first, std::min(first + 32, count), AT_WARP);
        moved = moved || release(0, count, AT_BLOCK);
        for (size_t i = 0; i < count; i++) left |= fibers[i].state != DONE;
        if (left && !moved) fprintf(stderr, "threads of a block wait at different places\n"), abort();
    }
}

template <class... P, size_t... I>
void call(void (*kernel)(P...), void **arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<P> *)arguments[I]...);
}

// What CUDA's launch does: arguments are the addresses of the kernel's parameters.
template <auto KERNEL, class... P>
void launch(void (*)(P...), const unsigned *grid, const unsigned *block, void **arguments) {
    static void **given;
    given = arguments;
    body = [] { call(KERNEL, given, std::index_sequence_for<P...>()); };
    gridDim = {grid[0], grid[1], 1}, blockDim = {block[0], block[1], 1};
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) run_block();
}

// ------------------------------------------------------------------------------------------ what a warp does together

// mma.m16n8k16: c (16 × 8) += a (16 × 16) · b (16 × 8), spread over the lanes as the PTX manual says.
template <class T>
void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned b[2] = {b0, b1};
    for (int i = 0; i < 8; i++) warp().a[lane()][i] = (float)((const T *)a)[i];
    for (int i = 0; i < 4; i++) warp().b[lane()][i] = (float)((const T *)b)[i];
    meet(AT_WARP);
    for (int i = 0; i < 4; i++) {
        int row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            float left = warp().a[row % 8 * 4 + k % 8 / 2][(row / 8 + 2 * (k / 8)) * 2 + k % 2];
            c[i] += left * warp().b[column * 4 + k % 8 / 2][k / 8 * 2 + k % 2];
        }
    }
    meet(AT_WARP);
}

// ldmatrix.x4: four 8 × 8 matrices of 16 bits, whose rows the lanes name, eight each.
inline void load(unsigned (&r)[4], const void *row, bool transposed) {
    warp().row[lane()] = row;
    meet(AT_WARP);
    for (int matrix = 0; matrix < 4; matrix++) {
        unsigned short both[2];
        for (int j = 0; j < 2; j++) {
            int one = lane() / 4, other = lane() % 4 * 2 + j;
            if (transposed) std::swap(one, other);
            both[j] = ((const unsigned short *)warp().row[matrix * 8 + one])[other];
        }
        memcpy(&r[matrix], both, 4);
    }
    meet(AT_WARP);
}

inline void copy(void *to, const void *from, bool there) {
    if ((size_t)to % 16 || (size_t)from % 16) fprintf(stderr, "cp.async of 16 bytes that are not aligned\n"), abort();
    there ? memcpy(to, from, 16) : memset(to, 0, 16);
}

}  // namespace cpu

inline void __syncthreads() { cpu::meet(cpu::AT_BLOCK); }

inline float __shfl_xor_sync(unsigned, float x, int mask) {
    cpu::warp().slot[cpu::lane()] = x;
    cpu::meet(cpu::AT_WARP);
    float other = cpu::warp().slot[cpu::lane() ^ mask];
    cpu::meet(cpu::AT_WARP);
    return other;
}

inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
