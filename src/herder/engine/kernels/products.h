// Products of rows with weight matrices that lie in panels of 32 outputs, one stream of memory each.
//
// A panel is read once for up to 12 rows. In every format the order of the sum over the inputs is that of one row alone,
// so batching never changes a bit. Rows are rounded to what the weights are multiplied with: bf16 for bf16 weights where the
// processor multiplies bf16 pairs, int16 with a scale per row for int8 and int4 weights, fp32 otherwise.
#pragma once
#include "vectors.h"

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3 };

constexpr int PANEL = 32;
constexpr int FLUSH = 512;  // 512 * 127 * 32,767 still fits in 31 bits
#if defined(__AVX512F__)
constexpr int MOST_ROWS = 12;  // 24 of 32 registers accumulate
#elif defined(__aarch64__)
constexpr int MOST_ROWS = 3;
#else
constexpr int MOST_ROWS = 2;
#endif

// `padded` inputs (a multiple of 32, zeros at the end). Panels of 32 outputs hold, input by input: F32 [k][32]; BF16 and INT8
// [k / 2][32][2]; INT4 records of a group of inputs: [k / 4][32][2] bytes, the low halves inputs 0 and 1 of four, then fp16
// scales [32] and offsets [32]: value = scale * q + offset. INT8: value = q * scale[output].
struct Matrix {
    const uint8_t* data;
    const float* scale;
    int32_t kind, outputs, inputs, padded, group;

    int panels() const { return (outputs + PANEL - 1) / PANEL; }
    size_t panel_bytes() const {
        if (kind == INT4) return size_t(padded / group) * (group / 2 * PANEL + 4 * PANEL);
        return size_t(padded) * PANEL * (kind == F32 ? 4 : kind == BF16 ? 2 : 1);
    }
    bool pairs() const { return kind == INT8 || kind == INT4 || (kind == BF16 && BF16_PAIRS); }
};

// Rows ready for a product, four interleaved: words [row / 4][unit][4], a unit being one fp32 input or a pair of 16 bits.
struct Rows {
    uint32_t* words;
    float* scale;      // [row], of int16 rows
    float* group_sum;  // [row][group], of int16 rows for INT4
    int units, groups;

    uint32_t* at(int row) const { return words + size_t(row / 4) * units * 4 + row % 4; }
    void fit(const Matrix& m) {
        units = m.pairs() ? m.padded / 2 : m.padded;
        groups = m.kind == INT4 ? m.padded / m.group : 0;
    }
    void put(const Matrix& m, int row, const float* x) const {  // x: inputs, with room up to `padded`, zeros there
        uint32_t* out = at(row);
        if (!m.pairs()) {
            for (int k = 0; k < m.padded; ++k) memcpy(out + 4 * k, x + k, 4);
        } else if (m.kind == BF16) {
            for (int k = 0; k < m.padded; k += LANES) put_pairs(out + 2 * k, rounded_bf16(load<Floats>(x + k)));
        } else {
            put_shorts(m, row, x, out);
        }
    }

  private:
    static void put_pairs(uint32_t* out, Words halves) {
        uint32_t h[LANES];
        store(h, halves);
        for (int i = 0; i < LANES / 2; ++i) out[4 * i] = (h[2 * i] & 0xffff) | h[2 * i + 1] << 16;
    }
    void put_shorts(const Matrix& m, int row, const float* x, uint32_t* out) const {
        Floats most = {};
        for (int k = 0; k < m.padded; k += LANES) most = greater(magnitude(load<Floats>(x + k)), most);
        float peak = largest(most);
        float inverse = peak > 0 ? 32767.0f / peak : 0.0f;
        scale[row] = peak / 32767.0f;
        for (int k = 0; k < m.padded; k += LANES) put_pairs(out + 2 * k, (Words)nearest(load<Floats>(x + k) * inverse));
        for (int g = 0; g < groups; ++g) {
            int32_t total = 0;
            for (int u = g * m.group / 2; u < (g + 1) * m.group / 2; ++u)
                total += int16_t(out[4 * u] & 0xffff) + (int32_t(out[4 * u]) >> 16);
            group_sum[size_t(row) * groups + g] = float(total);
        }
    }
};

typedef float Tile[PANEL];

#define UNROLL _Pragma("GCC unroll 16")

template <int M>
static inline uint32_t unit(const uint32_t* rows, size_t quad, int u, int m) {
    return rows[(m / 4) * quad + 4 * u + m % 4];
}
static inline float as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

template <int M>
static void product_f32(const Matrix& w, const uint8_t* panel, const Rows& a, int row, Tile* tile) {
    const uint32_t* rows = a.at(row);
    const size_t quad = size_t(a.units) * 4;
    const float* p = (const float*)panel;
    Floats acc[M][2] = {};
    for (int k = 0; k < w.padded; ++k, p += PANEL) {
        __builtin_prefetch(p + 32 * PANEL);
        __builtin_prefetch(p + 32 * PANEL + LANES);
        Floats low = load<Floats>(p), high = load<Floats>(p + LANES);
        UNROLL for (int m = 0; m < M; ++m) {
            Floats x = splat(as_float(unit<M>(rows, quad, k, m)));
            acc[m][0] += x * low;
            acc[m][1] += x * high;
        }
    }
    UNROLL for (int m = 0; m < M; ++m) store(tile[m], acc[m][0]), store(tile[m] + LANES, acc[m][1]);
}

template <int M>
static void product_bf16(const Matrix& w, const uint8_t* panel, const Rows& a, int row, Tile* tile) {
    const uint32_t* rows = a.at(row);
    const size_t quad = size_t(a.units) * 4;
    const uint32_t* p = (const uint32_t*)panel;
    Floats acc[M][2] = {};
    for (int u = 0; u < w.padded / 2; ++u, p += PANEL) {
        __builtin_prefetch(p + 32 * PANEL);
        __builtin_prefetch(p + 32 * PANEL + LANES);
        Words low = load<Words>(p), high = load<Words>(p + LANES);
#if BF16_PAIRS
        UNROLL for (int m = 0; m < M; ++m) {
            __m512bh x = (__m512bh)splat_word(unit<M>(rows, quad, u, m));
            acc[m][0] = (Floats)_mm512_dpbf16_ps((__m512)acc[m][0], (__m512bh)low, x);
            acc[m][1] = (Floats)_mm512_dpbf16_ps((__m512)acc[m][1], (__m512bh)high, x);
        }
#else
        UNROLL for (int m = 0; m < M; ++m) {
            Floats even = splat(as_float(unit<M>(rows, quad, 2 * u, m)));
            Floats odd = splat(as_float(unit<M>(rows, quad, 2 * u + 1, m)));
            acc[m][0] += even * (Floats)(low << 16);
            acc[m][0] += odd * (Floats)(low & 0xffff0000u);
            acc[m][1] += even * (Floats)(high << 16);
            acc[m][1] += odd * (Floats)(high & 0xffff0000u);
        }
#endif
    }
    UNROLL for (int m = 0; m < M; ++m) store(tile[m], acc[m][0]), store(tile[m] + LANES, acc[m][1]);
}

template <int M>
static void product_int8(const Matrix& w, const uint8_t* panel, const Rows& a, int row, Tile* tile) {
    const uint32_t* rows = a.at(row);
    const size_t quad = size_t(a.units) * 4;
    const uint8_t* p = panel;
    for (int m = 0; m < M; ++m) memset(tile[m], 0, sizeof(Tile));
    for (int from = 0; from < w.padded; from += FLUSH) {
        int to = from + FLUSH < w.padded ? from + FLUSH : w.padded;
        Ints acc[M][2] = {};
        for (int u = from / 2; u < to / 2; ++u, p += 2 * PANEL) {
            __builtin_prefetch(p + 64 * PANEL);
            Shorts low = widen_bytes(p), high = widen_bytes(p + PANEL);
            UNROLL for (int m = 0; m < M; ++m) {
                uint32_t x = unit<M>(rows, quad, u, m);
                acc[m][0] = dot_shorts(acc[m][0], low, x);
                acc[m][1] = dot_shorts(acc[m][1], high, x);
            }
        }
        UNROLL for (int m = 0; m < M; ++m) for (int h = 0; h < 2; ++h) {
            float* t = tile[m] + h * LANES;
            store(t, load<Floats>(t) + __builtin_convertvector(acc[m][h], Floats));
        }
    }
    const float* scale = w.scale + (panel - w.data) / w.panel_bytes() * PANEL;
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < PANEL; h += LANES)
            store(tile[m] + h, load<Floats>(tile[m] + h) * load<Floats>(scale + h) * a.scale[row + m]);
}

template <int M>
static void product_int4(const Matrix& w, const uint8_t* panel, const Rows& a, int row, Tile* tile) {
    const uint32_t* rows = a.at(row);
    const size_t quad = size_t(a.units) * 4;
    const uint8_t* p = panel;
    for (int m = 0; m < M; ++m) memset(tile[m], 0, sizeof(Tile));
    for (int g = 0, u = 0; g < a.groups; ++g) {
        Ints acc[M][2] = {};
        for (int end = u + w.group / 2; u < end; u += 2, p += 2 * PANEL) {
            __builtin_prefetch(p + 64 * PANEL);
            Shorts low = widen_unsigned(p), high = widen_unsigned(p + PANEL);
            Shorts low_first = low & 15, low_second = low >> 4, high_first = high & 15, high_second = high >> 4;
            UNROLL for (int m = 0; m < M; ++m) {
                uint32_t first = unit<M>(rows, quad, u, m), second = unit<M>(rows, quad, u + 1, m);
                acc[m][0] = dot_shorts(dot_shorts(acc[m][0], low_first, first), low_second, second);
                acc[m][1] = dot_shorts(dot_shorts(acc[m][1], high_first, first), high_second, second);
            }
        }
        UNROLL for (int h = 0; h < 2; ++h) {
            Floats scale = half_to_float(p + h * 2 * LANES), offset = half_to_float(p + 2 * PANEL + h * 2 * LANES);
            UNROLL for (int m = 0; m < M; ++m) {
                float* t = tile[m] + h * LANES;
                Floats total = splat(a.group_sum[size_t(row + m) * a.groups + g]);
                store(t, load<Floats>(t) + scale * __builtin_convertvector(acc[m][h], Floats) + offset * total);
            }
        }
        p += 4 * PANEL;
    }
    for (int m = 0; m < M; ++m)
        for (int h = 0; h < PANEL; h += LANES)
            store(tile[m] + h, load<Floats>(tile[m] + h) * a.scale[row + m]);
}

template <int M>
static void product_of(const Matrix& w, const uint8_t* panel, const Rows& a, int row, Tile* tile) {
    switch (w.kind) {
        case F32: return product_f32<M>(w, panel, a, row, tile);
        case BF16: return product_bf16<M>(w, panel, a, row, tile);
        case INT8: return product_int8<M>(w, panel, a, row, tile);
        default: return product_int4<M>(w, panel, a, row, tile);
    }
}

// Products of `panel` with rows row, row + 1, ... (at most `left`) into `tile`; returns how many rows it took.
static int product(const Matrix& w, int panel, const Rows& a, int row, int left, Tile* tile) {
    const uint8_t* p = w.data + size_t(panel) * w.panel_bytes();
#if defined(__AVX512F__)
    if (left >= 12) return product_of<12>(w, p, a, row, tile), 12;
    if (left >= 8) return product_of<8>(w, p, a, row, tile), 8;
    if (left >= 4) return product_of<4>(w, p, a, row, tile), 4;
    if (left == 3) return product_of<3>(w, p, a, row, tile), 3;
#elif defined(__aarch64__)
    if (left >= 3 && row % 4 == 0) return product_of<3>(w, p, a, row, tile), 3;
#endif
    if (left >= 2 && row % 4 <= 2) return product_of<2>(w, p, a, row, tile), 2;
    return product_of<1>(w, p, a, row, tile), 1;
}
