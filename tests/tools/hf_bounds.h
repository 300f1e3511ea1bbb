/* hf_bounds.h - how far a model in bf16 may be from reference data in f32.
 *
 * A rounding changes what it rounds by UNIT of itself at most. To first order N roundings change a result by
 * N * UNIT of its size at most, where no part makes a relative error larger than it came. The size of a
 * result is here the root mean square of its row, since what is off in a sum is not relative to the sum, and
 * that of the largest row. Roundings are counted on the way from the tokens to the logits, a product's two:
 * of its matrix and of what it gives.
 *   - A mixer: values 3, with the norm before them; the output of attention, the projection and the residual
 *     4; queries and keys 5 each, with both norms and the rotation. These change a score, which is sqrt(D) at
 *     most after the norm, by as much of itself; two keys' scores change against each other by twice that,
 *     and a softmax's weight by a quarter of it. So each of the 10 counts sqrt(D) / 2 times.
 *     Without that norm nothing in a configuration says how large scores are: the bound is then of models
 *     whose queries and keys are about as large as normed ones, as make_oracle.py's are by default.
 *     Gates are 4 more: norm, matrix and product, and what they multiply.
 *   - A gated delta net 27: queries, keys and values 4 each, with norm, matrix, product and convolution, and
 *     keys once more, since what is taken from a state and what is added to it have them; z 3; b and a 3; the
 *     output, its norm, the projection's two and the residual 5. Queries and keys are normed, so that no part
 *     of it is larger than what it came of; what its norm divides by is taken to be as large as that too, as
 *     it is where states last, as those of make_oracle.py do.
 *   - A feed-forward part 9: the norm, gate and up, their product, down, the sum over choices, the residual,
 *     the router's matrix.
 *   - The embedding, the last norm and the head 4.
 *   - Where there are biases, one more for each of the products that has one: 2 of a mixer beside those of
 *     queries and keys, 2 of a feed-forward part. YaRN makes queries and keys larger by a factor, and so
 *     scores and what they are off by that factor squared.
 *   - With hyper-connections, of each part: 1 of what it reads, and 2 of the weights to read and to write,
 *     which are off by as much of themselves as the stream that they are made of, of each by a sigmoid's
 *     half. Of attention over compressed entries: 3 of the output's rotation and of its first factor, and 5
 *     of an entry: values, gates and the rotation.
 * What the sums of tensor cores cut off, (K / 16 + 2) 2^-17, is less than a rounding at the sizes of these
 * models.
 *
 * From these: a softmax's weight changes by half the error of its logits, a quarter of two of them; a
 * log-probability by twice that of the logits, its own and that of their sum; a choice falls on another
 * expert where the reference's logits of the two are closer than twice the error of logits. A gradient has
 * the errors of the forward's activations and of the way back, where as much is rounded: 2 N, of the root
 * mean square of its tensor.
 *
 * Written so that NaN fails: what is compared is error <= bound. */
#ifndef HF_BOUNDS_H
#define HF_BOUNDS_H

#include "wb_model.h"

#include <math.h>

#define UNIT 0x1p-9

/* What scores are larger by. */
static inline double score_factor(const wb_rope_scaling *s) {
    const double magnitude = s->factor > 1 ? 0.1 * log(s->factor) + 1 : 1;
    if (s->type != WB_ROPE_YARN || (s->mscale > 0 && s->mscale == s->mscale_all_dim)) return 1;
    return pow(s->attention_factor > 0 ? s->attention_factor : magnitude, 2);
}

static inline double roundings(const wb_config *config) {
    const double biases = config->attention_bias ? 1 : 0,
                 expert_biases = config->family == WB_FAMILY_GPT_OSS ? 2 : 0;
    const double hyper = config->hyper.n_streams > 0 ? 3 : 0, entries = config->compressed.q_rank > 0 ? 8 : 0;
    const double scores = (5 + biases) * sqrt((double)config->head_dim) * score_factor(&config->rope_scaling);
    const double gates = config->delta.n_key_heads > 0 ? 4 : 0, delta = 27;
    const double mixer = 7 + 2 * biases + gates + scores + hyper + entries,
                 feed_forward = 9 + expert_biases + hyper;
    double sum = 4;
    for (int32_t l = 0; l < config->n_layers; l++)
        sum += feed_forward + (config->delta.layer_mask[l / 64] >> (l % 64) & 1u ? delta : mixer);
    return sum;
}

/* Of results of that root mean square. */
static inline double rounding_bound(const wb_config *config, double rms) {
    return roundings(config) * UNIT * rms;
}

/* The root mean square of the row where it is largest, of values[n, width]. */
static inline double largest_row(int64_t n, int64_t width, const float *values) {
    double largest = 0;
    for (int64_t row = 0; row < n; row++) {
        double sum = 0;
        for (int64_t i = 0; i < width; i++)
            sum += (double)values[row * width + i] * (double)values[row * width + i];
        largest = fmax(largest, sqrt(sum / (double)width));
    }
    return largest;
}

#endif
