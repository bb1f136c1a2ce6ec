/* llama.cpp's side of engine.py: one generation per line on stdin, one line of seconds out.

   llama_speed LIBS MODEL THREADS KV ROWS PROMPT NEW PREFILL

   Reads a prompt of PROMPT ids once, copies it to ROWS sequences, and draws NEW tokens for each
   (top-k 50, temperature 1); then reads PREFILL ids and draws one. KV is f32, f16 or q8_0.
   tests/golden/make_import.py says where llama.cpp's libraries and headers come from, and how such
   a program is compiled (with -O2). */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ggml-backend.h"
#include "llama.h"

enum { ROWS_AT_MOST = 64 };

static void errors_only(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void add(struct llama_batch *batch, llama_token id, int position, int row, int wanted) {
    int i = batch->n_tokens++;
    batch->token[i] = id, batch->pos[i] = position, batch->logits[i] = (signed char)wanted;
    batch->n_seq_id[i] = 1, batch->seq_id[i][0] = row;
}

static int read_prompt(struct llama_context *context, struct llama_batch *batch, int count) {
    llama_memory_clear(llama_get_memory(context), 0);
    batch->n_tokens = 0;
    for (int i = 0; i < count; i++) add(batch, i + 1, i, 0, i == count - 1);
    return llama_decode(context, *batch);
}

int main(int argc, char **argv) {
    if (argc != 9) return 1;
    int threads = atoi(argv[3]), rows = atoi(argv[5]), prompt = atoi(argv[6]);
    int new = atoi(argv[7]), prefill = atoi(argv[8]);
    enum ggml_type kv = !strcmp(argv[4], "f32")   ? GGML_TYPE_F32
                        : !strcmp(argv[4], "f16") ? GGML_TYPE_F16
                                                  : GGML_TYPE_Q8_0;
    if (rows > ROWS_AT_MOST) return 1;
    llama_log_set(errors_only, NULL);
    ggml_backend_load_all_from_path(argv[1]);
    llama_backend_init();
    struct llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    struct llama_model *model = llama_model_load_from_file(argv[2], model_params);
    if (!model) return 2;
    struct llama_context_params params = llama_context_default_params();
    int longest = prompt + new > prefill ? prompt + new : prefill + 1;
    params.n_seq_max = rows, params.n_ctx = rows * longest, params.kv_unified = 1;
    params.n_batch = params.n_ubatch = longest;
    params.n_threads = params.n_threads_batch = threads;
    params.type_k = params.type_v = kv;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) return 3;
    struct llama_batch batch = llama_batch_init(longest, 0, 1);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        struct llama_sampler *sampler =
            llama_sampler_chain_init(llama_sampler_chain_default_params());
        llama_sampler_chain_add(sampler, llama_sampler_init_top_k(50));
        llama_sampler_chain_add(sampler, llama_sampler_init_temp(1));
        llama_sampler_chain_add(sampler, llama_sampler_init_dist((uint32_t)clock()));
        llama_token chosen[ROWS_AT_MOST];
        double began = now(), first = 0;
        if (read_prompt(context, &batch, prompt)) return 4;
        for (int row = 1; row < rows; row++)
            llama_memory_seq_cp(llama_get_memory(context), 0, row, -1, -1);
        for (int row = 0; row < rows; row++)
            chosen[row] = llama_sampler_sample(sampler, context, prompt - 1);
        first = now() - began;
        for (int step = 1; step < new; step++) {
            batch.n_tokens = 0;
            for (int row = 0; row < rows; row++)
                add(&batch, chosen[row], prompt + step - 1, row, 1);
            if (llama_decode(context, batch)) return 5;
            for (int row = 0; row < rows; row++)
                chosen[row] = llama_sampler_sample(sampler, context, row);
        }
        double seconds = now() - began;
        began = now();
        if (read_prompt(context, &batch, prefill)) return 6;
        llama_sampler_sample(sampler, context, prefill - 1);
        printf("answer {\"seconds\": %.6f, \"first\": %.6f, \"prefill\": %.6f}\n", seconds, first,
               now() - began);
        fflush(stdout);
        llama_sampler_free(sampler);
    }
    return 0;
}
