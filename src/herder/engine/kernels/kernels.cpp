// One step of a Llama on the CPU in a single call: embedding, blocks, last norm; and the head (C ABI for ctypes).
//
// All threads go through the same phases and meet after each. Activations stay fp32 between products.
#include <sys/mman.h>

#include <mutex>

#include "attention.h"
#include "products.h"
#include "team.h"

struct Layer {
    Matrix qkv, output, gate_up, down;  // gate_up: panels of gate and up in turn
    const float *attention_norm, *ffn_norm;
};
struct Model {
    const Layer* layer;
    const uint8_t* embedding;
    const float* norm;
    int32_t embedding_kind, layers, dim, heads, kv_heads, head_dim, ffn;
    float eps;
};
// `rows` rows in `spans` sequences: span i is rows first[i] .. first[i] + count[i], at consecutive positions; its block table
// begins at tables + table_at[i]. cos, sin: (positions, head_dim / 2). Row select[i] is written to out + target[i] * dim.
struct Step {
    const int32_t *tokens, *positions, *first, *count, *table_at, *tables, *select, *target;
    const float *cos, *sin;
    float* out;
    int32_t rows, spans, selected;
};

namespace {

constexpr int ROW_BLOCK = 96;  // rows that share a panel while their inputs fit in the second-level cache
constexpr int SOLO_ROWS = 4;   // up to here every thread makes all rows ready for itself, which is less than a barrier

std::mutex one_call;

struct Buffer {
    std::vector<uint8_t> bytes;
    template <class T>
    T* of(size_t count) {
        size_t need = count * sizeof(T) + 64;
        if (bytes.size() < need) bytes.assign(need, 0);
        return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(bytes.data()) + 63) & ~uintptr_t(63));
    }
};

struct Memory {
    Buffer hidden, qkv, attended, ffn;
    struct {
        Buffer words, scale, sums;
    } shared;
    struct Own {
        Buffer words, scale, sums, line;
        AttentionScratch attention;
    };
    std::vector<Own> own;
} memory;

template <class Buffers>
Rows rows_in(Buffers& buffers, int rows, size_t padded) {
    size_t whole = size_t(rows + 3) / 4 * 4;
    Rows a{};
    a.words = buffers.words.template of<uint32_t>(whole * padded);
    a.scale = buffers.scale.template of<float>(whole);
    a.group_sum = buffers.sums.template of<float>(whole * (padded / 32));
    return a;
}

// Rows of one product: made by all threads together, or, where they are few, by each for itself.
struct Inputs {
    Rows together;
    std::vector<Rows> solo;
    std::vector<float*> line;
    int rows;

    Inputs(int rows, size_t padded, int threads) : rows(rows) {
        memory.own.resize(threads);
        together = rows_in(memory.shared, rows, padded);
        for (auto& own : memory.own) {
            line.push_back(own.line.of<float>(padded));
            solo.push_back(rows <= SOLO_ROWS ? rows_in(own, rows, padded) : Rows{});
        }
    }

    // x: rows `w.inputs` apart; change(from, to) fills a row's inputs.
    template <class Change>
    Rows make(Team::Worker& worker, const Matrix& w, const float* x, Change&& change) {
        Rows a = rows <= SOLO_ROWS ? solo[worker.id] : together;
        a.fit(w);
        float* values = line[worker.id];
        memset(values + w.inputs, 0, size_t(w.padded - w.inputs) * 4);
        auto one = [&](int row) {
            change(x + size_t(row) * w.inputs, values);
            a.put(w, row, values);
        };
        if (rows > SOLO_ROWS) worker.each(rows, one);
        else if (!worker.late()) for (int row = 0; row < rows; ++row) one(row);
        return a;
    }
    Rows make(Team::Worker& worker, const Matrix& w, const float* x) {
        return make(worker, w, x, [&](const float* from, float* to) { memcpy(to, from, size_t(w.inputs) * 4); });
    }
};

// Calls finish(row, panel, values) for each row's 32 outputs of each panel.
template <class Finish>
void multiply(Team::Worker& worker, const Matrix& m, const Rows& a, int rows, Finish&& finish) {
    const int panels = m.panels(), blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
    worker.each(panels * blocks, [&](int item) {
        alignas(64) Tile tile[12];
        int panel = item % panels, row = item / panels * ROW_BLOCK;
        for (int end = row + ROW_BLOCK < rows ? row + ROW_BLOCK : rows; row < end;) {
            int taken = product(m, panel, a, row, end - row, tile);
            for (int i = 0; i < taken; ++i) finish(row + i, panel, tile[i]);
            row += taken;
        }
    });
}

// out[row] (+)= products, `width` apart.
template <bool ADD>
void multiply_into(Team::Worker& worker, const Matrix& m, const Rows& a, int rows, float* out, size_t width) {
    multiply(worker, m, a, rows, [&](int row, int panel, const float* values) {
        float* y = out + size_t(row) * width + size_t(panel) * PANEL;
        int count = m.outputs - panel * PANEL < PANEL ? m.outputs - panel * PANEL : PANEL;
        for (int i = 0; i < count; ++i) y[i] = ADD ? y[i] + values[i] : values[i];
    });
}

// silu(gate) * up of each pair of panels into out, `width` apart.
void multiply_gated(Team::Worker& worker, const Matrix& m, const Rows& a, int rows, int ffn, float* out, size_t width) {
    const int pairs = m.panels() / 2, blocks = (rows + ROW_BLOCK - 1) / ROW_BLOCK;
    worker.each(pairs * blocks, [&](int item) {
        alignas(64) Tile gate[12], up[12];
        int pair = item % pairs, row = item / pairs * ROW_BLOCK;
        int count = ffn - pair * PANEL < PANEL ? ffn - pair * PANEL : PANEL;
        for (int end = row + ROW_BLOCK < rows ? row + ROW_BLOCK : rows; row < end;) {
            int taken = product(m, 2 * pair, a, row, end - row, gate);
            product(m, 2 * pair + 1, a, row, end - row, up);
            for (int i = 0; i < taken; ++i, ++row) {
                for (int h = 0; h < PANEL; h += LANES) {
                    Floats g = load<Floats>(gate[i] + h);
                    store(up[i] + h, g / (exponential(-g) + 1.0f) * load<Floats>(up[i] + h));
                }
                memcpy(out + size_t(row) * width + size_t(pair) * PANEL, up[i], size_t(count) * 4);
            }
        }
    });
}

void normalise(const float* x, const float* weight, float eps, int dim, float* out) {
    Floats squares = {};
    int i = 0;
    for (; i + LANES <= dim; i += LANES) squares += load<Floats>(x + i) * load<Floats>(x + i);
    float total = sum(squares);
    for (; i < dim; ++i) total += x[i] * x[i];
    float inverse = 1.0f / sqrtf(total / dim + eps);
    for (i = 0; i < dim; ++i) out[i] = x[i] * inverse * weight[i];
}

// Rotates the pairs (i, i + head_dim / 2) of one head, times `factor`.
void rotate(float* x, const float* cos, const float* sin, int half, float factor) {
    for (int i = 0; i < half; ++i) {
        float a = x[i], b = x[i + half];
        x[i] = (a * cos[i] - b * sin[i]) * factor;
        x[i + half] = (b * cos[i] + a * sin[i]) * factor;
    }
}

struct Stretch {  // query rows of one sequence that are attended together
    int row, rows, span;
};

std::vector<Stretch> stretches(const Step& s) {
    std::vector<Stretch> found;
    for (int span = 0; span < s.spans; ++span)
        for (int i = (s.count[span] - 1) / QUERY_ROWS * QUERY_ROWS; i >= 0; i -= QUERY_ROWS) {  // the longest first
            int left = s.count[span] - i;
            found.push_back({s.first[span] + i, left < QUERY_ROWS ? left : QUERY_ROWS, span});
        }
    return found;
}

size_t padded_most(const Model& m) {
    size_t most = 0;
    for (int i = 0; i < m.layers; ++i)
        for (const Matrix* w : {&m.layer[i].qkv, &m.layer[i].output, &m.layer[i].gate_up, &m.layer[i].down})
            if (size_t(w->padded) > most) most = w->padded;
    return most;
}

// Everything one call shares between its threads.
struct Run {
    const Model& m;
    const Pages& pages;
    const Step& s;
    Inputs inputs;
    const size_t qkv_width;
    float *hidden, *qkv, *attended, *ffn;
    std::vector<Stretch> spread;

    Run(const Model& m, const Pages& pages, const Step& s, int threads)
        : m(m),
          pages(pages),
          s(s),
          inputs(s.rows, padded_most(m), threads),
          qkv_width(size_t(m.heads + 2 * m.kv_heads) * m.head_dim),
          spread(stretches(s)) {
        hidden = memory.hidden.of<float>(size_t(s.rows) * m.dim);
        qkv = memory.qkv.of<float>(s.rows * qkv_width);
        attended = memory.attended.of<float>(size_t(s.rows) * m.heads * m.head_dim);
        ffn = memory.ffn.of<float>(size_t(s.rows) * m.ffn);
        int wide = (m.head_dim + LANES - 1) / LANES * LANES;
        for (auto& own : memory.own) own.attention.fit(QUERY_ROWS * (m.heads / m.kv_heads), wide);
    }

    void embed(int row) const {
        float* h = hidden + size_t(row) * m.dim;
        size_t at = size_t(s.tokens[row]) * m.dim;
        if (m.embedding_kind == F32) memcpy(h, m.embedding + at * 4, size_t(m.dim) * 4);
        else Pages::get(h, m.embedding + at * 2, nullptr, BF16, m.dim);
    }

    Rows normalised(Team::Worker& worker, const Matrix& w, const float* norm) {
        return inputs.make(worker, w, hidden,
                           [&](const float* from, float* to) { normalise(from, norm, m.eps, m.dim, to); });
    }

    // For one KV head: rotates k and its queries, and writes k and v to the pages.
    void place(int layer, const Stretch& stretch, int head) const {
        const int d = m.head_dim, half = d / 2, group = m.heads / m.kv_heads;
        const float scale = 1.0f / sqrtf(float(d));
        for (int row = stretch.row; row < stretch.row + stretch.rows; ++row) {
            int position = s.positions[row];
            const float *cos = s.cos + size_t(position) * half, *sin = s.sin + size_t(position) * half;
            float *q = qkv + row * qkv_width, *k = q + size_t(m.heads + head) * d, *v = k + size_t(m.kv_heads) * d;
            for (int h = head * group; h < (head + 1) * group; ++h) rotate(q + size_t(h) * d, cos, sin, half, scale);
            rotate(k, cos, sin, half, 1.0f);
            int block = s.tables[s.table_at[stretch.span] + position / pages.block_size];
            size_t slot = pages.slot(layer, block, head, position % pages.block_size), at = slot * pages.width();
            size_t scale_at = pages.kind == INT8 ? slot : 0;
            Pages::put(pages.k + at, pages.k_scale + scale_at, k, pages.kind, d);
            Pages::put(pages.v + at, pages.v_scale + scale_at, v, pages.kind, d);
        }
    }

    void attend_stretch(Team::Worker& worker, int layer, const Stretch& stretch, int head, bool more) const {
        const int group = m.heads / m.kv_heads;
        const size_t width = size_t(m.heads) * m.head_dim, at = size_t(head) * group * m.head_dim;
        Queries queries{s.tables + s.table_at[stretch.span], s.positions[stretch.row], stretch.rows};
        attend(pages, memory.own[worker.id].attention, queries, layer, head, group, more,
               qkv + stretch.row * qkv_width + at, qkv_width, attended + stretch.row * width + at, width);
    }

    void attention(Team::Worker& worker, int layer) const {
        const int count = int(spread.size());
        const bool apart = count == s.spans;  // nobody waits for what another one places
        if (!apart)
            worker.each(count * m.kv_heads, [&](int i) { place(layer, spread[i / m.kv_heads], i % m.kv_heads); });
        // One thread takes all heads of its rows, whose keys lie together, unless some threads had nothing to do then.
        const int parts = count < 4 * worker.team.size ? m.kv_heads : 1, heads = m.kv_heads / parts;
        worker.each(count * parts, [&](int i) {
            const Stretch& stretch = spread[i / parts];
            for (int head = i % parts * heads, end = head + heads; head < end; ++head) {
                if (apart) place(layer, stretch, head);
                attend_stretch(worker, layer, stretch, head, head + 1 < end);
            }
        });
    }

    void block(Team::Worker& worker, int index) {
        const Layer& l = m.layer[index];
        multiply_into<false>(worker, l.qkv, normalised(worker, l.qkv, l.attention_norm), s.rows, qkv, qkv_width);
        attention(worker, index);
        multiply_into<true>(worker, l.output, inputs.make(worker, l.output, attended), s.rows, hidden, m.dim);
        multiply_gated(worker, l.gate_up, normalised(worker, l.gate_up, l.ffn_norm), s.rows, m.ffn, ffn, m.ffn);
        multiply_into<true>(worker, l.down, inputs.make(worker, l.down, ffn), s.rows, hidden, m.dim);
    }

    void all(Team::Worker& worker) {
        worker.each(s.rows, [&](int row) { embed(row); });
        for (int i = 0; i < m.layers; ++i) block(worker, i);
        worker.each(s.selected, [&](int i) {
            normalise(hidden + size_t(s.select[i]) * m.dim, m.norm, m.eps, m.dim, s.out + size_t(s.target[i]) * m.dim);
        });
    }
};

}  // namespace

extern "C" {

int herder_bf16_pairs() { return BF16_PAIRS; }

// Asks for huge pages for memory that is not touched yet: fewer look-ups of addresses while weights stream.
void herder_huge_pages(void* start, size_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = 4096, from = (uintptr_t(start) + page - 1) & ~(page - 1);
    const uintptr_t to = (uintptr_t(start) + bytes) & ~(page - 1);
    if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

void herder_step(const Model* model, const Pages* pages, const Step* step, int threads) {
    std::lock_guard<std::mutex> lock(one_call);
    Run run(*model, *pages, *step, threads);
    team_of(threads).run([&](Team::Worker& worker) { run.all(worker); });
}

// Packs `rows` weight rows of `inputs` values as in Matrix: row r takes lane (first + r) % 32 of panel
// (first + r) / 32 * step + offset. INT4 takes two inputs a byte, and its scales and offsets per group. The rest stays as it is.
void herder_pack(uint8_t* out, int kind, int group, const uint8_t* source, const uint8_t* scale, const uint8_t* zero, int rows,
                 int inputs, int padded, int first, int step, int offset, int threads) {
    std::lock_guard<std::mutex> lock(one_call);
    const Matrix m{out, nullptr, kind, 0, inputs, padded, group};
    const size_t unit = kind == INT8 ? 2 : 4;
    const size_t width = kind == INT4 ? padded / 2 : size_t(inputs) * (kind == F32 ? 4 : kind == BF16 ? 2 : 1);
    auto one = [&](int r) {
        int at = first + r, lane = at % PANEL;
        uint8_t* panel = out + size_t(at / PANEL * step + offset) * m.panel_bytes();
        const uint8_t* from = source + size_t(r) * width;
        if (kind != INT4) {
            uint8_t* to = panel + lane * unit;
            for (size_t i = 0; i < width; i += unit, to += PANEL * unit)
                memcpy(to, from + i, width - i < unit ? width - i : unit);
            return;
        }
        for (int g = 0, groups = padded / group; g < groups; ++g) {
            for (int k = 0; k < group; k += 4, from += 2, panel += 2 * PANEL) {
                panel[2 * lane] = uint8_t((from[0] & 15) | from[1] << 4);
                panel[2 * lane + 1] = uint8_t(from[0] >> 4 | (from[1] & 0xf0));
            }
            memcpy(panel + 2 * lane, scale + (size_t(r) * groups + g) * 2, 2);
            memcpy(panel + 2 * PANEL + 2 * lane, zero + (size_t(r) * groups + g) * 2, 2);
            panel += 4 * PANEL;
        }
    };
    const int blocks = (rows + PANEL - 1) / PANEL;
    team_of(threads).run([&](Team::Worker& worker) {
        worker.each(blocks, [&](int block) {
            for (int r = block * PANEL; r < rows && r < (block + 1) * PANEL; ++r) one(r);
        });
    });
}

// out[row] = matrix times x[row]; x: (rows, inputs), out: (rows, outputs).
void herder_product(const Matrix* matrix, const float* x, int rows, float* out, int threads) {
    std::lock_guard<std::mutex> lock(one_call);
    const Matrix& m = *matrix;
    Inputs inputs(rows, m.padded, threads);
    team_of(threads).run([&](Team::Worker& worker) {
        multiply_into<false>(worker, m, inputs.make(worker, m, x), rows, out, m.outputs);
    });
}
}
