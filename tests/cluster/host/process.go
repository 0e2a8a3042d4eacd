// Package host owns every change to the machine: packages, namespaces, mounts,
// links, cgroups and processes, how they are made and how every one of them
// is found and removed again. It does not know what Kubernetes is.
package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/render"
)

// StartCommand is the hidden sub-command by which the program starts a
// component: it enters the component's cgroup and becomes the component.
const StartCommand = "internal-start"

// running identifies a process for as long as the machine is up: a PID may
// come again, but not with the same start time.
type running struct {
	PID   int    `json:"pid"`
	Start string `json:"start"`
}

func pidFile(name string) string { return filepath.Join(plan.PIDDir(), name+".json") }

// PID of the named component, or 0 if it does not run.
func PID(name string) int {
	text, err := os.ReadFile(pidFile(name))
	if err != nil {
		return 0
	}
	var r running
	if json.Unmarshal(text, &r) != nil || r.PID <= 0 {
		return 0
	}
	if start, state := processStart(r.PID); start != r.Start || state == "Z" {
		return 0
	}
	return r.PID
}

// processStart is the process's start time in clock ticks since boot and its
// state; both are empty if there is no such process.
func processStart(pid int) (start, state string) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", ""
	}
	// The command name, in parentheses, may hold anything.
	_, rest, ok := strings.Cut(string(text[strings.LastIndexByte(string(text), ')'):]), " ")
	if !ok {
		return "", ""
	}
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", ""
	}
	return fields[19], fields[0]
}

// Start runs the component in its space, detached from this program, with its
// output appended to logPath.
func Start(p render.Process, logPath string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command, err := exec.LookPath(p.Args[0])
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	args := append([]string{StartCommand, p.Space, strconv.Itoa(p.OOMScoreAdj), command}, p.Args[1:]...)
	cmd := exec.Command(self, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	pid := cmd.Process.Pid
	start, _ := processStart(pid)
	// Reaped here while this program lives, and by the machine's init after.
	go func() { _ = cmd.Wait() }()
	text, err := json.Marshal(running{PID: pid, Start: start})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(plan.PIDDir(), 0o755); err != nil {
		return err
	}
	return os.WriteFile(pidFile(p.Name), text, 0o644)
}

// RunStart is the body of StartCommand: it never returns but with an error.
func RunStart(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("%s: want a space, a score and a command", StartCommand)
	}
	space, command := args[0], args[2:]
	if err := EnterCgroup(space); err != nil {
		return err
	}
	// Without CAP_SYS_RESOURCE the score can be raised only; then it stays.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte(args[1]), 0)
	return ExecIn(space, command)
}

// ExecIn replaces this process by the command in the space's namespaces.
func ExecIn(space string, command []string) error {
	args := append(append([]string{"nsenter"}, enterFlags(space)...), append([]string{"--"}, command...)...)
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	return fmt.Errorf("exec %s: %w", nsenter, syscall.Exec(nsenter, args, os.Environ()))
}

// enterFlags are nsenter's for the space.
func enterFlags(space string) []string {
	flags := []string{"--net=" + plan.NetPin(space)}
	if _, err := os.Stat(plan.MountPin(space)); err == nil {
		flags = append(flags, "--mount="+plan.MountPin(space))
	}
	return flags
}

// In is a command to run within the space; output is the caller's to set.
func In(ctx context.Context, space string, command ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append(append(enterFlags(space), "--"), command...)...)
}

// Kill ends the named component and waits until it is gone.
func Kill(name string) error {
	pid := PID(name)
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill %s: %w", name, err)
	}
	for range 100 {
		if PID(name) == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("kill %s: process %d is still there", name, pid)
}

// members are the processes which belong to the cluster: those in its
// cgroups and those in its namespaces, except this one and its ancestors.
func members() (map[int]bool, error) {
	pids, err := cgroupMembers()
	if err != nil {
		return nil, err
	}
	kept := map[string]bool{}
	pins, _ := filepath.Glob(filepath.Join(plan.PinDir(), "*"))
	for _, pin := range pins {
		var st unix.Stat_t
		if unix.Stat(pin, &st) == nil && isNamespace(pin) {
			kept[strconv.FormatUint(st.Ino, 10)] = true
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		for _, ns := range []string{"net", "mnt"} {
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
			if err != nil {
				continue // gone meanwhile, or a kernel thread
			}
			if _, inode, ok := strings.Cut(strings.TrimSuffix(link, "]"), "["); ok && kept[inode] {
				pids[pid] = true
			}
		}
	}
	for pid := os.Getpid(); pid > 0; pid = parent(pid) {
		delete(pids, pid)
	}
	return pids, nil
}

func parent(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return ppid
}

// killMembers ends every process of the cluster.
func killMembers() error {
	var last map[int]bool
	for range 300 {
		pids, err := members()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		for pid := range pids {
			if _, state := processStart(pid); state == "Z" {
				delete(pids, pid) // waits for its parent only
				continue
			}
			_ = syscall.Kill(pid, syscall.SIGKILL) // the next round sees whether it worked
		}
		if len(pids) == 0 {
			return nil
		}
		last = pids
		time.Sleep(50 * time.Millisecond)
	}
	var names []string
	for pid := range last {
		names = append(names, describe(pid))
	}
	return fmt.Errorf("processes do not end: %s", strings.Join(names, "; "))
}

func describe(pid int) string {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(cmdline) == 0 {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		return fmt.Sprintf("%d (%s)", pid, strings.TrimSpace(string(comm)))
	}
	text := strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
	return fmt.Sprintf("%d (%.80s)", pid, text)
}

// exists says whether the path is there, whatever it is.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
