/* Whether this file is what was compiled: every member against its checksum. */
#include "standalone.h"

static const char damaged[] = "this program's file is damaged: %s; copy or compile it again";

int smc_verify(const struct smc_command *command) {
  char reason[SMC_ERROR_BYTES], name[SMC_NAME_BYTES];
  struct smc_artifact file;
  struct smc_member member;
  struct smc_buffer wrong = {0}, out = {0};
  uint64_t bytes = 0, count = 0;
  int status;
  if (smc_artifact_map(&file, smc_own_path(), reason)) smc_die("%s", reason);
  for (; (status = smc_zip_member(file.data, file.size, count, name, &member, reason)) == SMC_OK;
       count++, bytes += member.length)
    if (smc_crc32(0, file.data + member.offset, member.length) != member.crc)
      smc_add_format(&wrong, "%s%s", wrong.length ? ", " : "", name);
  if (status != SMC_NO_SPACE) smc_die(damaged, reason);
  if (wrong.length) {
    smc_fail(reason, SMC_BAD_INPUT, "its checksums do not fit %s", wrong.bytes);
    smc_die(damaged, reason);
  }
  if (command->json)
    smc_add_format(&out, "{\"members\": %llu, \"bytes\": %llu}\n", (unsigned long long)count,
                   (unsigned long long)bytes);
  else
    smc_add_format(&out, "all %llu members, %.1f MB, are as they were compiled\n", (unsigned long long)count,
                   (double)bytes / 1e6);
  smc_print(out.bytes, out.length);
  smc_buffer_free(&out);
  smc_artifact_close(&file);
  return 0;
}
