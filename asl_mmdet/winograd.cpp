// The transforms of Winograd's F(4 x 4, 3 x 3) at the points 0, 3/4, -3/4, 3/2, -3/2 and infinity. Pictures and features
// are channels last, channels a multiple of LANES; a tile is 6 x 6 numbers of one channel, those of all channels lie at
// (number of the 36, tile, channel).
#include <cstdint>

// GCC and Clang make of it what the machine has.
typedef float Vec __attribute__((vector_size(64), aligned(4), may_alias));
constexpr int64_t LANES = 16;
constexpr float P = 0.75f, Q = 1.5f, P2 = P * P, Q2 = Q * Q;

static inline Vec load(const float* from) { return *(const Vec*)from; }
static inline void store(float* to, Vec value) { *(Vec*)to = value; }

// B^T d: six numbers a step apart become six.
static inline void spread(const Vec* d, Vec* out, int64_t step) {
    const Vec d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const Vec even_p = d4 - Q2 * d2, odd_p = P * (d3 - Q2 * d1);
    const Vec even_q = d4 - P2 * d2, odd_q = Q * (d3 - P2 * d1);
    out[0] = P2 * Q2 * d0 - (P2 + Q2) * d2 + d4;
    out[step] = even_p + odd_p;
    out[2 * step] = even_p - odd_p;
    out[3 * step] = even_q + odd_q;
    out[4 * step] = even_q - odd_q;
    out[5 * step] = P2 * Q2 * d1 - (P2 + Q2) * d3 + d5;
}

// A^T m: six become four.
static inline void gather(const Vec* m, Vec* out, int64_t step) {
    const Vec even_p = m[step] + m[2 * step], odd_p = m[step] - m[2 * step];
    const Vec even_q = m[3 * step] + m[4 * step], odd_q = m[3 * step] - m[4 * step];
    out[0] = m[0] + even_p + even_q;
    out[step] = P * odd_p + Q * odd_q;
    out[2 * step] = P2 * even_p + Q2 * even_q;
    out[3 * step] = P2 * P * odd_p + Q2 * Q * odd_q + m[5 * step];
}

// (n, h, w, c) to (36, count, c): tiles that begin every four pixels, one above and left of them, with zeros around; count
// of them, from the first on.
extern "C" void to_tiles(
    const float* x, float* tiles, int64_t h, int64_t w, int64_t c, int64_t first, int64_t count, int threads
) {
    const int64_t rows = (h + 3) / 4, columns = (w + 3) / 4;
    #pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < count; k++) {
        const int64_t tile = first + k;
        const float* picture = x + tile / (rows * columns) * h * w * c;
        const int64_t top = tile / columns % rows * 4 - 1, left = tile % columns * 4 - 1;
        for (int64_t channel = 0; channel < c; channel += LANES) {
            Vec d[36], by_columns[36], by_rows[36];
            for (int64_t i = 0; i < 6; i++)
                for (int64_t j = 0; j < 6; j++) {
                    const int64_t row = top + i, column = left + j;
                    const bool inside = row >= 0 && row < h && column >= 0 && column < w;
                    d[6 * i + j] = inside ? load(picture + (row * w + column) * c + channel) : Vec{};
                }
            for (int64_t j = 0; j < 6; j++) spread(d + j, by_columns + j, 6);
            for (int64_t i = 0; i < 6; i++) spread(by_columns + 6 * i, by_rows + 6 * i, 1);
            for (int64_t i = 0; i < 36; i++) store(tiles + (i * count + k) * c + channel, by_rows[i]);
        }
    }
}

// (36, count, c) to the same tiles' part of (n, h, w, c), plus bias (c).
extern "C" void from_tiles(
    const float* tiles, const float* bias, float* y, int64_t h, int64_t w, int64_t c, int64_t first, int64_t count,
    int threads
) {
    const int64_t rows = (h + 3) / 4, columns = (w + 3) / 4;
    #pragma omp parallel for num_threads(threads)
    for (int64_t k = 0; k < count; k++) {
        const int64_t tile = first + k;
        float* picture = y + tile / (rows * columns) * h * w * c;
        const int64_t top = tile / columns % rows * 4, left = tile % columns * 4;
        for (int64_t channel = 0; channel < c; channel += LANES) {
            Vec m[36], by_columns[24];
            for (int64_t i = 0; i < 36; i++) m[i] = load(tiles + (i * count + k) * c + channel);
            for (int64_t j = 0; j < 6; j++) gather(m + j, by_columns + j, 6);
            const Vec shift = load(bias + channel);
            for (int64_t i = 0; i < 4 && top + i < h; i++) {
                Vec out[4];
                gather(by_columns + 6 * i, out, 1);
                for (int64_t j = 0; j < 4 && left + j < w; j++)
                    store(picture + ((top + i) * w + left + j) * c + channel, out[j] + shift);
            }
        }
    }
}
