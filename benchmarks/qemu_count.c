/* A qemu plugin for user emulation: how often every translated block of the program ran.
 *
 *     qemu-aarch64 -plugin libqemu_count.so,out=FILE PROGRAM
 *
 * When the program ends, FILE has one line "threads N", then one line "ADDRESS INSTRUCTIONS EXECUTIONS" a block
 * (hexadecimal, decimal, decimal). A block is a straight line of instructions, entered only at its first: instructions
 * executed are the sum of the products.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <qemu-plugin.h>

QEMU_PLUGIN_EXPORT int qemu_plugin_version = QEMU_PLUGIN_VERSION;

struct block {
  uint64_t address, instructions, executions;
  struct block *next;
};

static struct block *blocks; /* newest first; a block that qemu translates again is in the list again */
static unsigned threads;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *out;

static void on_thread(qemu_plugin_id_t id, unsigned thread) {
  (void)id, (void)thread;
  pthread_mutex_lock(&lock);
  threads++;
  pthread_mutex_unlock(&lock);
}

static void on_run(unsigned thread, void *block) {
  (void)thread;
  __atomic_fetch_add(&((struct block *)block)->executions, 1, __ATOMIC_RELAXED);
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *translated) {
  (void)id;
  struct block *block = calloc(1, sizeof *block);
  if (!block) abort();
  block->address = qemu_plugin_tb_vaddr(translated);
  block->instructions = qemu_plugin_tb_n_insns(translated);
  pthread_mutex_lock(&lock);
  block->next = blocks;
  blocks = block;
  pthread_mutex_unlock(&lock);
  qemu_plugin_register_vcpu_tb_exec_cb(translated, on_run, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void on_exit_of_program(qemu_plugin_id_t id, void *user) {
  (void)id, (void)user;
  FILE *file = fopen(out, "w");
  if (!file) {
    perror(out);
    return;
  }
  fprintf(file, "threads %u\n", threads);
  for (const struct block *block = blocks; block; block = block->next)
    if (block->executions)
      fprintf(file, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", block->address, block->instructions, block->executions);
  if (fclose(file)) perror(out);
}

QEMU_PLUGIN_EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
  if (info->system_emulation || argc != 1 || strncmp(argv[0], "out=", 4)) {
    fprintf(stderr, "qemu_count: user emulation only; give out=FILE\n");
    return -1;
  }
  out = strdup(argv[0] + 4);
  if (!out) return -1;
  qemu_plugin_register_vcpu_init_cb(id, on_thread);
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
  qemu_plugin_register_atexit_cb(id, on_exit_of_program, NULL);
  return 0;
}
