// Vectors of 16 lanes through the compiler's vector extensions: one source for AVX-512, AVX2, NEON and plain C++.
// Sums are always taken in one fixed order, so a row's result never depends on what stands beside it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define BF16_PAIRS 1  // products of bf16 pairs in one instruction
#else
#define BF16_PAIRS 0
#endif

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int16_t Shorts __attribute__((vector_size(64)));
typedef int8_t Bytes __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef int8_t Bytes16 __attribute__((vector_size(16)));

template <class Vector, class T>
static inline Vector load(const T* p) {
    typedef Vector Loose __attribute__((aligned(1), may_alias));
    return *reinterpret_cast<const Loose*>(p);
}
template <class Vector, class T>
static inline void store(T* p, Vector v) {
    typedef Vector Loose __attribute__((aligned(1), may_alias));
    *reinterpret_cast<Loose*>(p) = v;
}
static inline Floats splat(float x) { return x - Floats{}; }
static inline Words splat_word(uint32_t x) { return x - Words{}; }
static inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }
static inline Floats magnitude(Floats a) { return (Floats)((Words)a & 0x7fffffffu); }

static inline Floats below(int count, Floats x, Floats other) {  // lanes of x below `count`, the rest of other
    const Ints lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return lane < count - Ints{} ? x : other;
}

#define APART __attribute__((noinline))  // keeps its registers to itself
#define MIX(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)

static inline float sum(Floats v) {
    v += MIX(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    v += MIX(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    v += MIX(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    v += MIX(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v[0];
}
static inline float largest(Floats v) {
    v = greater(v, MIX(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
    v = greater(v, MIX(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
    v = greater(v, MIX(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
    v = greater(v, MIX(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    return v[0];
}

// Lane i of the result is the sum of v[i]: a transposition that adds on its way.
static inline Floats sums(Floats* v) {
    for (int i = 0; i < 8; ++i) {
        Floats a = v[2 * i], b = v[2 * i + 1];
        v[i] = MIX(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
               MIX(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
    }
    for (int i = 0; i < 4; ++i) {
        Floats a = v[2 * i], b = v[2 * i + 1];
        v[i] = MIX(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               MIX(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    for (int i = 0; i < 2; ++i) {
        Floats a = v[2 * i], b = v[2 * i + 1];
        v[i] = MIX(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               MIX(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    }
    Floats a = v[0], b = v[1];
    return MIX(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           MIX(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

// Nearest integers, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves them in the low bits.
static inline Ints nearest(Floats x) { return (Ints)(x + 12582912.0f) - 0x4B400000; }

// e^x to about 1e-7 relative: 2^n times a polynomial on |r| <= ln(2) / 2. Below -87 the result is at most 1.7e-38.
static inline Floats exponential(Floats x) {
    x = x > 88.0f ? splat(88.0f) : (x < -87.0f ? splat(-87.0f) : x);
    Ints n = nearest(x * 1.44269504f);
    Floats whole = __builtin_convertvector(n, Floats);
    Floats r = x - whole * 0.693145752f - whole * 1.42860677e-6f;
    Floats y = r * 1.98756911e-4f + 1.39819994e-3f;
    y = y * r + 8.33345205e-3f;
    y = y * r + 4.16657962e-2f;
    y = y * r + 1.66666657e-1f;
    y = y * r + 5.0e-1f;
    y = y * r * r + r + 1.0f;
    return (Floats)((Ints)y + (n << 23));
}

static inline Floats widen(Halves bf16) {
#if defined(__AVX512F__)
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)bf16), 16);
#else
    return (Floats)(__builtin_convertvector(bf16, Words) << 16);
#endif
}
static inline Floats widen(Bytes16 x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)x));
#else
    return __builtin_convertvector(x, Floats);
#endif
}
static inline Words rounded_bf16(Floats x) {  // to nearest, ties to even; NaN stays NaN
    Words bits = (Words)x;
    Words up = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (Words)((bits & 0x7fffffffu) > 0x7f800000u) ? (bits >> 16) | 0x40u : up;
}
static inline float widen(uint16_t bf16) {
    uint32_t bits = uint32_t(bf16) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// 16 IEEE half floats.
static inline Floats half_to_float(const uint8_t* p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#else
    Words bits = __builtin_convertvector(load<Halves>(p), Words);
    // The exponent of fp16 is rebased by a product with 2^112, which is right for subnormal halves too.
    Floats value = (Floats)((bits & 0x7fffu) << 13) * 5.192296858534828e33f;
    return (Floats)((Words)value | ((bits & 0x8000u) << 16));
#endif
}

// acc + a.even * b.even + a.odd * b.odd in each 32-bit lane, where `pair` holds the same two int16 for every lane.
static inline Ints dot_shorts(Ints acc, Shorts w, uint32_t pair) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)w, (__m512i)splat_word(pair));
#elif defined(__AVX512BW__)
    return acc + (Ints)_mm512_madd_epi16((__m512i)w, (__m512i)splat_word(pair));
#else
    Ints even = ((Ints)w << 16) >> 16, odd = (Ints)w >> 16;
    return acc + even * (int32_t)(int16_t)(pair & 0xffff) + odd * ((int32_t)pair >> 16);
#endif
}
static inline Shorts widen_bytes(const uint8_t* p) {  // 32 int8
#if defined(__AVX512BW__)
    return (Shorts)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p));
#else
    return __builtin_convertvector(load<Bytes>(p), Shorts);
#endif
}
static inline Shorts widen_unsigned(const uint8_t* p) {  // 32 uint8
#if defined(__AVX512BW__)
    return (Shorts)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
#else
    return __builtin_convertvector(load<Bytes>(p), Shorts) & (int16_t)0xff;
#endif
}
