// Causal attention of query rows over K and V pages, by position: decoded rows and prefill stretches take the same path.
//
// Chunks of 64 positions with a running maximum and sum; chunk borders depend on the position alone.
#pragma once
#include <cmath>
#include <limits>
#include <vector>

#include "products.h"

constexpr int CHUNK = 64;
constexpr int QUERY_ROWS = 16;  // rows of one sequence that share a chunk of K and V once it is widened

// Pages (layers, blocks, kv_heads, block_size, head_dim) of F32, BF16 or INT8; scales (layers, blocks, kv_heads, block_size).
struct Pages {
    uint8_t *k, *v;
    float *k_scale, *v_scale;
    int32_t kind, layers, blocks, kv_heads, block_size, head_dim;

    size_t slot(int layer, int block, int head, int offset) const {
        return ((size_t(layer) * blocks + block) * kv_heads + head) * block_size + offset;
    }
    size_t width() const { return size_t(head_dim) * (kind == F32 ? 4 : kind == BF16 ? 2 : 1); }

    static void put(uint8_t* out, float* scale, const float* x, int kind, int count) {
        if (kind == F32) {
            memcpy(out, x, size_t(count) * 4);
        } else if (kind == BF16) {
            int i = 0;
            for (; i + LANES <= count; i += LANES)
                store(out + 2 * i, __builtin_convertvector(rounded_bf16(load<Floats>(x + i)), Halves));
            for (; i < count; ++i) {
                uint16_t half = uint16_t(rounded_bf16(splat(x[i]))[0]);
                memcpy(out + 2 * i, &half, 2);
            }
        } else {
            float peak = 0;
            for (int i = 0; i < count; ++i) peak = fabsf(x[i]) > peak ? fabsf(x[i]) : peak;
            *scale = peak / 127.0f;
            float inverse = peak > 0 ? 1.0f / *scale : 0.0f;
            for (int i = 0; i < count; ++i) ((int8_t*)out)[i] = int8_t(nearbyintf(x[i] * inverse));
        }
    }
    static void get(float* out, const uint8_t* p, const float* scale, int kind, int count) {
        int i = 0;
        if (kind == BF16) {
            for (; i + LANES <= count; i += LANES) store(out + i, widen(load<Halves>(p + 2 * i)));
            for (; i < count; ++i) out[i] = widen(((const uint16_t*)p)[i]);
        } else if (kind == INT8) {
            for (; i + LANES <= count; i += LANES)
                store(out + i, widen(load<Bytes16>(p + i)) * *scale);
            for (; i < count; ++i) out[i] = ((const int8_t*)p)[i] * *scale;
        } else {
            memcpy(out, p, size_t(count) * 4);
        }
    }
};

// What one thread needs for QUERY_ROWS rows of the query heads of one KV head. `wide` is head_dim rounded up to 16.
struct AttentionScratch {
    std::vector<float> floats;
    float *q, *out, *most, *total, *k_tile, *v_tile;

    void fit(int queries, int wide) {
        floats.resize(size_t(queries) * (2 * wide + 2) + 2 * CHUNK * wide);
        q = floats.data();
        out = q + size_t(queries) * wide;
        most = out + size_t(queries) * wide;
        total = most + queries;
        k_tile = total + queries;
        v_tile = k_tile + CHUNK * wide;
    }
};

// D: head_dim / 16 where it is known to the compiler, 0 for any.
template <int D>
APART static void scores_of(const float* q, const float* const* k, int seen, int vectors, float* scores) {
    const int count = D ? D : vectors;
    Floats query[D ? D : 1];
    if (D) for (int i = 0; i < D; ++i) query[i] = load<Floats>(q + i * LANES);
    for (int from = 0; from < seen; from += LANES) {
        Floats acc[LANES];
        UNROLL for (int j = 0; j < LANES; ++j) {
            const float* key = k[from + j];
            acc[j] = Floats{};
            for (int i = 0; i < count; ++i)
                acc[j] += (D ? query[D ? i : 0] : load<Floats>(q + i * LANES)) * load<Floats>(key + i * LANES);
        }
        store(scores + from, below(seen - from, sums(acc), splat(-std::numeric_limits<float>::infinity())));
    }
}

template <int N>
APART static void weigh(float* out, float keep, const float* p, const float* const* v, int offset, int seen) {
    Floats acc[N];
    UNROLL for (int i = 0; i < N; ++i) acc[i] = load<Floats>(out + i * LANES) * keep;
    for (int j = 0; j < seen; ++j) {
        const float* value = v[j] + offset;
        UNROLL for (int i = 0; i < N; ++i) acc[i] += p[j] * load<Floats>(value + i * LANES);
    }
    UNROLL for (int i = 0; i < N; ++i) store(out + i * LANES, acc[i]);
}

APART static void attend_chunk(const AttentionScratch& s, int query, int wide, int seen, const float* const* k,
                               const float* const* v) {
    float p[CHUNK];
    const float* q = s.q + size_t(query) * wide;
    float* out = s.out + size_t(query) * wide;
    const int vectors = wide / LANES;
    if (vectors == 4) scores_of<4>(q, k, seen, vectors, p);
    else if (vectors == 8) scores_of<8>(q, k, seen, vectors, p);
    else scores_of<0>(q, k, seen, vectors, p);
    Floats peak = load<Floats>(p);
    for (int j = LANES; j < seen; j += LANES) peak = greater(load<Floats>(p + j), peak);
    float most = largest(peak);
    most = most > s.most[query] ? most : s.most[query];
    float keep = exponential(splat(s.most[query] - most))[0];
    Floats total = {};
    for (int j = 0; j < seen; j += LANES) {
        Floats e = exponential(load<Floats>(p + j) - most);
        e = below(seen - j, e, Floats{});
        store(p + j, e);
        total += e;
    }
    s.most[query] = most;
    s.total[query] = s.total[query] * keep + sum(total);
    for (int i = 0; i < vectors; i += 4) {
        float* o = out + i * LANES;
        switch (vectors - i) {
            case 1: weigh<1>(o, keep, p, v, i * LANES, seen); break;
            case 2: weigh<2>(o, keep, p, v, i * LANES, seen); break;
            case 3: weigh<3>(o, keep, p, v, i * LANES, seen); break;
            default: weigh<4>(o, keep, p, v, i * LANES, seen);
        }
    }
}

// Rows of one sequence that stand at position, position + 1, ... (at most QUERY_ROWS).
struct Queries {
    const int32_t* table;
    int position, rows;

    int last() const { return position + rows - 1; }
    int chunk_end(int from) const { return last() + 1 < from + CHUNK ? last() + 1 : from + CHUNK; }
};

// Where a chunk's keys and values lie: in place, or widened in the scratch. What comes next is fetched meanwhile.
struct Chunk {
    const float *k[CHUNK], *v[CHUNK];

    void read(const Pages& pages, const AttentionScratch& s, const Queries& q, int layer, int head, int from, bool more) {
        const int d = pages.head_dim, wide = (d + LANES - 1) / LANES * LANES, end = q.chunk_end(from);
        const bool in_place = pages.kind == F32 && d == wide, narrow = pages.kind == INT8;
        const int next_head = end > q.last() ? head + 1 : head, next = end > q.last() ? 0 : end;
        const int next_end = next_head == head || more ? q.chunk_end(next) : 0;
        for (int j = 0; j < CHUNK; ++j) {
            if (next + j < next_end) {
                size_t at = slot(pages, q, layer, next_head, next + j) * pages.width();
                for (size_t line = 0; line < pages.width(); line += 64) {
                    __builtin_prefetch(pages.k + at + line, 0, 3);
                    __builtin_prefetch(pages.v + at + line, 0, 3);
                }
            }
            if (from + j >= end) {
                k[j] = k[0];  // read, then masked
                continue;
            }
            size_t here = slot(pages, q, layer, head, from + j), at = here * pages.width();
            if (in_place) {
                k[j] = (const float*)(pages.k + at), v[j] = (const float*)(pages.v + at);
            } else {
                k[j] = s.k_tile + j * wide, v[j] = s.v_tile + j * wide;
                Pages::get(s.k_tile + j * wide, pages.k + at, pages.k_scale + (narrow ? here : 0), pages.kind, d);
                Pages::get(s.v_tile + j * wide, pages.v + at, pages.v_scale + (narrow ? here : 0), pages.kind, d);
            }
        }
    }

  private:
    static size_t slot(const Pages& pages, const Queries& q, int layer, int head, int position) {
        return pages.slot(layer, q.table[position / pages.block_size], head, position % pages.block_size);
    }
};

// Attention of the query heads of one KV head. q: rotated and scaled, its rows `q_stride` apart, the first at this KV head's first
// query head; out likewise. `more`: the next KV head of the same rows follows.
static void attend(const Pages& pages, AttentionScratch& s, const Queries& queries, int layer, int head, int heads, bool more,
                   const float* q, size_t q_stride, float* out, size_t out_stride) {
    const int d = pages.head_dim, wide = (d + LANES - 1) / LANES * LANES, position = queries.position, rows = queries.rows;
    for (int r = 0; r < rows; ++r)
        for (int h = 0; h < heads; ++h) {
            int query = r * heads + h;
            memcpy(s.q + size_t(query) * wide, q + r * q_stride + size_t(h) * d, size_t(d) * 4);
            for (int i = d; i < wide; ++i) s.q[size_t(query) * wide + i] = 0;
            memset(s.out + size_t(query) * wide, 0, size_t(wide) * 4);
            s.most[query] = -1e30f;
            s.total[query] = 0;
        }
    if (d < wide) memset(s.k_tile, 0, size_t(2 * CHUNK) * wide * 4);  // what is read beyond a head is finite
    Chunk chunk;
    for (int from = 0; from <= queries.last(); from += CHUNK) {
        chunk.read(pages, s, queries, layer, head, from, more);
        for (int r = from > position ? from - position : 0; r < rows; ++r) {
            int seen = position + r + 1 - from < CHUNK ? position + r + 1 - from : CHUNK;
            for (int h = 0; h < heads; ++h) attend_chunk(s, r * heads + h, wide, seen, chunk.k, chunk.v);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int h = 0; h < heads; ++h) {
            int query = r * heads + h;
            float inverse = 1.0f / s.total[query];
            for (int i = 0; i < d; ++i) out[r * out_stride + size_t(h) * d + i] = s.out[size_t(query) * wide + i] * inverse;
        }
}
