/* What the parts of the guest program share. init.c says what PID 1 does, command.c how one command is run. */

#ifndef TARE_GUEST_H
#define TARE_GUEST_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define RUN_FOLDER "/run/tare"
#define COMMAND_PORT RUN_FOLDER "/command-port"
#define COMMANDS_CGROUP RUN_FOLDER "/commands" /* leads to the cgroup that holds those of all commands (init.c) */
#define NEW_ROOT "/newroot"

/* --- tell.c: to the host, by lines on the console ----------------------------------------------------------------- */

/* The guest's CLOCK_MONOTONIC, which starts when its kernel does. */
uint64_t now_ns(void);

/* Writes one line that starts with "tare: ". */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Says that this guest has come as far as `mark`, and when by its own clock. */
void say_mark(const char *mark);

/* Says what failed and why, and powers the guest off. */
_Noreturn void give_up(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void fail(const char *what, const char *which, int error);

/* --- parameters.c: what the host asks for on the kernel's command line ---------------------------------------------- */

struct parameters {
    char *pids;    /* bound on the processes of all commands */
    char *scratch; /* "disk" or "virtiofs"; none without it */
    char *modules; /* names of further kernel modules, joined by commas */
    char *net;     /* ADDRESS/PREFIX of the first virtio network interface */
    char *gateway; /* the address of its default route */
    char *line;    /* the serial device that is there in place of virtio ports and guest agent */
    char *profile; /* "full" boots the image's systemd; "minimal", which is the same as none, does not */
};

extern struct parameters parameters;

/* Reads /proc/cmdline, and the OEM strings if that asks for it. /sys is mounted. A parameter that starts with "tare." and is none of ours, or has no value, ends the guest. */
void read_parameters(void);

/* --- modules.c -------------------------------------------------------------------------------------------------------- */

/* Loads what every guest needs, then those that were asked for with all that they need. */
void load_modules(void);

/* --- devices.c -------------------------------------------------------------------------------------------------------- */

/* Begins to listen to the kernel's device events. Before the modules are loaded. */
void listen_to_devices(void);

/* Waits until `find` returns a number other than 0, asking it again after each device event; ends the guest after 20 s. */
void await_device(int (*find)(const char *wanted, char *found, size_t size), const char *wanted, char *found, size_t size);

/* For await_device: /dev/NAME of the disk with this serial number (virtio-blk or SCSI), of the virtio port with this name. */
int find_disk(const char *serial, char *device, size_t size);
int find_port(const char *name, char *device, size_t size);

/* --- network.c -------------------------------------------------------------------------------------------------------- */

/* Brings up lo, and the first virtio network interface with its address if parameters ask for it. */
void configure_network(void);

/* --- files.c ---------------------------------------------------------------------------------------------------------- */

/* Writes a small file in one go; returns 0 or an errno. */
int write_file(const char *path, const char *text);

/* Reads a small file as a string without the newline at its end; returns its length, or -1. */
long read_file(const char *path, char *text, size_t size);

void attach(const char *source, const char *target, const char *type, unsigned long flags, const char *options);

/* The image below a tmpfs on NEW_ROOT; then its kernel file systems, and the step into it; then the rest of them. */
void mount_root(void);
void enter_root(void);
void finish_file_systems(void);
void mount_scratch(void);

/* --- end.c ------------------------------------------------------------------------------------------------------------ */

#define POWER_OFF_SIGNAL (SIGRTMIN + 4) /* as systemd takes it, so that any guest is asked in the same way */

/* From here on SIGCHLD and POWER_OFF_SIGNAL come one by one, to reap(). */
void hold_signals(sigset_t *awaited);

/* Reaps for good; says so if the agent ends, or powers off if that served the line. Powers off when it is asked to. */
_Noreturn void reap(pid_t agent, const sigset_t *awaited);

/* --- agent.c ---------------------------------------------------------------------------------------------------------- */

/* Whether the image has QEMU's guest agent. */
int find_agent(void);

/* Is the guest agent on this port, for images without one. */
_Noreturn void run_agent(const char *port);

/* --- restored.c ------------------------------------------------------------------------------------------------------- */

/* Gives a guest that goes on from saved memory the time and random numbers of its own; returns its process's exit status. */
int run_restored(int count, char **arguments);
/* --- system.c --------------------------------------------------------------------------------------------------------- */

/* Becomes the image's systemd, which starts the guest agent on this port. After all that the guest has been set up. */
_Noreturn void become_system(const char *agent_port);

/* Says a mark (one word) or a line (more of them) on the console, from a process that was started by systemd. */
int tell(char **words);

/* --- command.c -------------------------------------------------------------------------------------------------------- */

/* Begins a frame: a type (one byte), a length (32 bits, little-endian), that many bytes. */
struct header {
    uint8_t type;
    uint32_t length;
} __attribute__((packed));

#define FRAME_HEADER sizeof(struct header)

void put_header(char *frame, char type, uint32_t length);

/* Runs one command for the host; returns the exit status of this process. */
int run_command(void);

/* --- line.c ----------------------------------------------------------------------------------------------------------- */

/*
 * The most that the host sends before it is asked for more. A line whose reader is 4 KiB behind is throttled, and the 6.1
 * kernel of user-mode Linux takes no interrupt of it any more once it goes on: what comes later would never be read.
 */
#define LINE_WINDOW 1024

/* Has the serial line /dev/NAME open in raw mode, and from then on marks go over it too. */
void open_line(const char *name);
void mark_line(const char *mark);

/* A process that runs commands by that line, and ends when the host has closed it. */
pid_t start_line_server(const char *name);

#endif
