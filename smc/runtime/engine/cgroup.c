/* The cgroups of this process: they, not the machine, say what a container may use. */
#include "internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES 4096

int smc_read_line(const char *path, char *line, int size) {
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  const int got = fgets(line, size, file) != NULL;
  fclose(file);
  return got;
}

/* Visits the directories from the process's own cgroup up to the mount point. Inside a container the path in
 * /proc/self/cgroup may not exist below the mount; then the mount point itself is the container's. */
static void visit_levels(const char *mount, const char *group, int version, smc_cgroup_visit *visit, void *context) {
  char directory[PATH_BYTES];
  if ((size_t)snprintf(directory, sizeof directory, "%s%s", mount, group) >= sizeof directory) return;
  for (;;) {
    visit(context, directory, version);
    char *slash = strrchr(directory, '/');
    if (!slash || (size_t)(slash - directory) < strlen(mount)) return;
    *slash = 0;
  }
}

static void visit_mount(const char *root, const char *name, const char *group, int version, smc_cgroup_visit *visit,
                        void *context) {
  char mount[PATH_BYTES];
  const int length = snprintf(mount, sizeof mount, "%s%s%s", root, *name ? "/" : "", name);
  if (length < (int)sizeof mount) visit_levels(mount, group, version, visit, context);
}

void smc_cgroup_levels(const char *membership, const char *root, const char *controller, smc_cgroup_visit *visit,
                       void *context) {
  FILE *file = fopen(membership, "re");
  if (!file) return;
  char line[PATH_BYTES], names[PATH_BYTES];
  while (fgets(line, sizeof line, file)) { /* "0::/group" (version 2) or "4:cpu,cpuacct:/group" (version 1) */
    line[strcspn(line, "\n")] = 0;
    char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group) continue;
    *group++ = 0;
    controllers++;
    if (!*controllers) {
      visit_mount(root, "", group, 2, visit, context);
      visit_mount(root, "unified", group, 2, visit, context); /* where both versions are mounted */
      continue;
    }
    int named = 0;
    snprintf(names, sizeof names, "%s", controllers);
    for (char *rest = names, *name; (name = strtok_r(rest, ",", &rest));) named |= !strcmp(name, controller);
    if (!named) continue;
    visit_mount(root, controllers, group, 1, visit, context);
    if (strcmp(controllers, controller))
      visit_mount(root, controller, group, 1, visit, context); /* mounted under its own name */
  }
  fclose(file);
}
