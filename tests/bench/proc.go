package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// accounting is how CPU time of a proxy is read, the best that the machine
// gives: cgroup v2, the v1 controller cpuacct, or /proc with its 10 ms ticks.
type accounting struct {
	name string
	root string // "" for /proc
	file string
	unit time.Duration
}

func findAccounting() accounting {
	for _, a := range []accounting{
		{"cgroup v2", "/sys/fs/cgroup", "cpu.stat", time.Microsecond},
		{"cgroup v1 cpuacct", "/sys/fs/cgroup/cpuacct", "cpuacct.usage", time.Nanosecond},
	} {
		dir := filepath.Join(a.root, fmt.Sprintf("hauberk-bench-%d", os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		_, err := os.Stat(filepath.Join(dir, a.file))
		_ = os.Remove(dir)
		if err == nil {
			return a
		}
	}
	return accounting{name: "/proc ticks of 10 ms"}
}

// process is one proxy (with its workers) or the backend.
type process struct {
	name   string
	cmd    *exec.Cmd
	out    *tail
	cgroup string
	acct   accounting
	done   chan struct{}
	err    error // set before done closes
}

// tail keeps the last of what a process says.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 16<<10; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// started counts processes, to name their cgroups.
type starter struct {
	acct  accounting
	count int
	env   []string
}

func (s *starter) start(ctx context.Context, name string, args ...string) (*process, error) {
	s.count++
	p := &process{name: name, out: &tail{}, acct: s.acct, done: make(chan struct{})}
	if s.acct.root != "" {
		p.cgroup = filepath.Join(s.acct.root, fmt.Sprintf("hauberk-bench-%d-%d", os.Getpid(), s.count))
		if err := os.Mkdir(p.cgroup, 0o755); err != nil {
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		// A shell enters the cgroup first, so that no worker is forked outside.
		args = append([]string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$@"`, p.cgroup}, args...)
	}
	p.cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	p.cmd.Env = append(os.Environ(), s.env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		p.removeCgroup()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// stop ends the process group and waits for it.
func (p *process) stop() {
	group := -p.cmd.Process.Pid
	_ = syscall.Kill(group, syscall.SIGKILL)
	<-p.done
	p.removeCgroup()
}

func (p *process) removeCgroup() {
	if p.cgroup == "" {
		return
	}
	// Workers that were just killed may still be on their way out.
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err := os.Remove(p.cgroup); err == nil || errors.Is(err, os.ErrNotExist) {
			return
		}
	}
}

// alive tells why the process has ended, if it has.
func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended (%w):\n%s", p.name, p.err, p.out)
	default:
		return nil
	}
}

// cpu is user and system time so far, of the process and its workers.
func (p *process) cpu() (time.Duration, error) {
	if p.cgroup != "" {
		b, err := os.ReadFile(filepath.Join(p.cgroup, p.acct.file))
		if err != nil {
			return 0, err
		}
		text := strings.TrimSpace(string(b))
		if rest, ok := strings.CutPrefix(text, "usage_usec "); ok {
			text, _, _ = strings.Cut(rest, "\n")
		}
		n, err := strconv.ParseInt(text, 10, 64)
		return time.Duration(n) * p.acct.unit, err
	}
	var total time.Duration
	for _, pid := range p.tree() {
		f, err := statFields(pid)
		if err != nil {
			continue // a worker that has ended meanwhile
		}
		for _, i := range []int{11, 12} { // utime, stime after the name
			n, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return 0, err
			}
			total += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return total, nil
}

// statFields are the fields of /proc/pid/stat behind the command's name.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	return f, nil
}

// tree is the process and its descendants.
func (p *process) tree() []int {
	parents := map[int]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if f, err := statFields(pid); err == nil {
			parents[pid], _ = strconv.Atoi(f[1])
		}
	}
	var tree []int
	for pid := range parents {
		for at := pid; at > 1; at = parents[at] {
			if at == p.cmd.Process.Pid {
				tree = append(tree, pid)
				break
			}
		}
	}
	return tree
}

// pss is the memory of the process and its workers in bytes, shared pages
// divided among those who share them.
func (p *process) pss() (int64, error) {
	var total int64
	for _, pid := range p.tree() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
				kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
				if err != nil {
					return 0, err
				}
				total += kb << 10
			}
		}
	}
	if total == 0 {
		return 0, fmt.Errorf("%s: memory can't be read", p.name)
	}
	return total, nil
}

// raiseLimits lets this process and its children hold many connections.
func raiseLimits() uint64 {
	const want = 65536
	limit := unix.Rlimit{Cur: want, Max: want}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		return want
	}
	_ = unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	limit.Cur = limit.Max
	_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	return limit.Cur
}
