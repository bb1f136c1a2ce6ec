/* llama.cpp as a reference for tests/golden/make_import.py, which says how this is compiled.

   llama_reference LIBS MODEL tok             text on stdin -> its ids (no BOS, nothing special)
   llama_reference LIBS MODEL logits          a line of ids -> fp32 logits [T, V]
   llama_reference LIBS MODEL greedy N        lines of ids -> N ids each, decoded side by side

   Keys and values are F32 and flash attention is off, or the logits would be those of F16. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ggml-backend.h"
#include "llama.h"

enum { LONGEST = 1024, ROWS = 64 };

static void errors_only(enum ggml_log_level level, const char *text, void *unused) {
    (void)unused;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static char *all_of_stdin(size_t *size) {
    size_t room = 1 << 20, count;
    char *text = malloc(room);
    for (*size = 0; (count = fread(text + *size, 1, room - *size - 1, stdin)) > 0; *size += count)
        if (*size + count + 1 >= room) text = realloc(text, room *= 2);
    text[*size] = 0;
    return text;
}

static int read_ids(const char *line, llama_token *ids) {
    int count = 0;
    for (char *end; count < LONGEST; line = end) {
        long id = strtol(line, &end, 10);
        if (end == line) break;
        ids[count++] = (llama_token)id;
    }
    return count;
}

static void add(struct llama_batch *batch, llama_token id, int position, int row, int wanted) {
    int i = batch->n_tokens++;
    batch->token[i] = id, batch->pos[i] = position, batch->logits[i] = (signed char)wanted;
    batch->n_seq_id[i] = 1, batch->seq_id[i][0] = row;
}

static struct llama_context *context_of(struct llama_model *model, int rows) {
    struct llama_context_params params = llama_context_default_params();
    params.n_seq_max = rows, params.n_ctx = rows > 1 ? rows * 256 : LONGEST;
    params.n_batch = params.n_ubatch = LONGEST;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return llama_init_from_model(model, params);
}

static int largest(const float *logits, int count) {
    int best = 0;
    for (int i = 1; i < count; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

int main(int argc, char **argv) {
    if (argc < 4) return 1;
    llama_log_set(errors_only, NULL);
    ggml_backend_load_all_from_path(argv[1]);
    llama_backend_init();
    int only_tokens = !strcmp(argv[3], "tok"), length = argc > 4 ? atoi(argv[4]) : 0;
    struct llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0, params.vocab_only = only_tokens;
    struct llama_model *model = llama_model_load_from_file(argv[2], params);
    if (!model) return 2;
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    int V = llama_vocab_n_tokens(vocab);
    size_t size;
    char *text = all_of_stdin(&size);

    if (only_tokens) {
        int count = -llama_tokenize(vocab, text, (int)size, NULL, 0, 0, 0);
        llama_token *ids = malloc(sizeof *ids * (count + 1));
        llama_tokenize(vocab, text, (int)size, ids, count, 0, 0);
        for (int i = 0; i < count; i++) printf("%d ", ids[i]);
        return 0;
    }

    static llama_token prompt[LONGEST], chosen[ROWS];
    static int position[ROWS];
    static char *lines[ROWS];
    int rows = 0;
    for (char *line = strtok(text, "\n"); line && rows < ROWS; line = strtok(NULL, "\n"))
        lines[rows++] = line;
    struct llama_context *context = context_of(model, rows);
    if (!context) return 3;
    struct llama_batch batch = llama_batch_init(LONGEST, 0, 1);
    int *answers = malloc(sizeof *answers * rows * (length + 1));
    for (int row = 0; row < rows; row++) {
        int count = read_ids(lines[row], prompt);
        batch.n_tokens = 0;
        for (int i = 0; i < count; i++) add(&batch, prompt[i], i, row, !length || i == count - 1);
        if (llama_decode(context, batch)) return 4;
        for (int i = 0; !length && i < count; i++)
            fwrite(llama_get_logits_ith(context, i), sizeof(float), V, stdout);
        if (length) chosen[row] = largest(llama_get_logits_ith(context, count - 1), V);
        position[row] = count;
    }
    for (int step = 0; step < length; step++) {
        batch.n_tokens = 0;
        for (int row = 0; row < rows; row++) {
            answers[row * length + step] = chosen[row];
            add(&batch, chosen[row], position[row]++, row, 1);
        }
        if (step == length - 1) break;
        if (llama_decode(context, batch)) return 5;
        for (int row = 0; row < rows; row++)
            chosen[row] = largest(llama_get_logits_ith(context, row), V);
    }
    for (int row = 0; row < rows && length; row++) {
        for (int i = 0; i < length; i++) printf("%d ", answers[row * length + i]);
        printf("\n");
    }
    return 0;
}
