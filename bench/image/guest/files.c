/* Files and file systems. The root is the image's erofs below a tmpfs. */

#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define IMAGE_SERIAL "tare-image"
#define SCRATCH_NAME "tare-scratch" /* the serial number of the disk, or the tag of the shared folder */

int write_file(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return errno;
    int error = write(file, text, strlen(text)) < 0 ? errno : 0;
    close(file);
    return error;
}

long read_file(const char *path, char *text, size_t size)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return -1;
    ssize_t length = read(file, text, size - 1);
    close(file);
    if (length < 0)
        return -1;
    if (length > 0 && text[length - 1] == '\n')
        length--;
    text[length] = '\0';
    return length;
}

void attach(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
    mkdir(target, 0755);
    if (mount(source, target, type, flags, options) != 0)
        fail("mounting", target, errno);
}

void mount_root(void)
{
    char disk[64];
    await_device(find_disk, IMAGE_SERIAL, disk, sizeof disk);
    attach(disk, "/lower", "erofs", MS_RDONLY, "");
    attach("tare", "/rw", "tmpfs", 0, "mode=0755");
    mkdir("/rw/upper", 0755);
    mkdir("/rw/work", 0755);
    attach("tare", NEW_ROOT, "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work");
}

void enter_root(void)
{
    attach("/dev", NEW_ROOT "/dev", NULL, MS_MOVE, NULL);
    attach("/sys", NEW_ROOT "/sys", NULL, MS_MOVE, NULL);
    attach("/proc", NEW_ROOT "/proc", NULL, MS_MOVE, NULL);
    attach("tmpfs", NEW_ROOT "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    mkdir(NEW_ROOT RUN_FOLDER, 0755);
    int program = open(NEW_ROOT RUN_FOLDER "/guest", O_CREAT | O_WRONLY | O_CLOEXEC, 0755);
    close(program);
    if (mount("/init", NEW_ROOT RUN_FOLDER "/guest", NULL, MS_BIND, NULL) != 0)
        fail("binding", RUN_FOLDER "/guest", errno);
    if (chdir(NEW_ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
        fail("entering", "the image's root", errno);
}

void finish_file_systems(void)
{
    attach("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    attach("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    attach("cgroup", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    if (symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/0", "/dev/stdin") ||
        symlink("/proc/self/fd/1", "/dev/stdout") || symlink("/proc/self/fd/2", "/dev/stderr"))
        fail("linking", "/dev/fd", errno);
}

void mount_scratch(void)
{
    char disk[64];
    if (parameters.scratch == NULL)
        return;
    if (strcmp(parameters.scratch, "virtiofs") == 0) {
        attach(SCRATCH_NAME, "/scratch", "virtiofs", MS_NOATIME, "");
        return;
    }
    await_device(find_disk, SCRATCH_NAME, disk, sizeof disk);
    attach(disk, "/scratch", "ext4", MS_NOATIME, "");
}
