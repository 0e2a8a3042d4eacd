// Package build owns the cache of binaries: it builds Kubernetes, CoreDNS and
// the pause program from their modules, once for each version on a machine,
// and hands out the folders they lie in.
package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/hauberk-mesh/hauberk/tests/cluster/image"
	"github.com/hauberk-mesh/hauberk/tests/cluster/plan"
	"github.com/hauberk-mesh/hauberk/tests/cluster/report"
)

// neededBytes is what a first build of Kubernetes takes: the build cache and
// the binaries.
const neededBytes = 7 << 30

// Cache is where the binaries and archives lie.
type Cache struct {
	Kubernetes string   // folder with kube-apiserver and the others
	Archives   []string // images to load into every node
}

// target is one binary.
type target struct {
	name    string
	pkg     string
	ldflags string
}

func kubernetesTargets() []target {
	const version = "k8s.io/component-base/version."
	major, rest, _ := strings.Cut(strings.TrimPrefix(plan.KubernetesVersion, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	flags := fmt.Sprintf("-s -w -X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s -X %[1]sgitTreeState=clean",
		version, plan.KubernetesVersion, major, minor)
	var ts []target
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"} {
		ts = append(ts, target{name: name, pkg: "k8s.io/kubernetes/cmd/" + name, ldflags: flags})
	}
	return ts
}

// Ensure builds what the cache lacks. source is the folder of the cluster
// program's own module.
func Ensure(ctx context.Context, source string, r *report.Reporter) (Cache, error) {
	base, err := cacheFolder()
	if err != nil {
		return Cache{}, err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return Cache{}, err
	}
	unlock, err := lock(filepath.Join(base, ".lock"), r)
	if err != nil {
		return Cache{}, err
	}
	defer unlock()

	goTool, version, err := toolchain(ctx, source)
	if err != nil {
		return Cache{}, err
	}
	b := builder{ctx: ctx, goTool: goTool, goVersion: version, base: base, report: r}
	kubernetes, err := b.all("kubernetes-"+plan.KubernetesVersion, filepath.Join(source, "kubernetes"), kubernetesTargets())
	if err != nil {
		return Cache{}, err
	}
	coredns, err := b.all("coredns-"+plan.CoreDNSVersion, filepath.Join(source, "coredns"), []target{{name: "coredns", pkg: ".", ldflags: "-s -w"}})
	if err != nil {
		return Cache{}, err
	}
	pause, err := b.all("pause", filepath.Join(source, "pause"), []target{{name: "pause", pkg: ".", ldflags: "-s -w"}})
	if err != nil {
		return Cache{}, err
	}
	cache := Cache{Kubernetes: kubernetes}
	for ref, file := range map[string]string{plan.PauseImage: filepath.Join(pause, "pause"), plan.CoreDNSImage: filepath.Join(coredns, "coredns")} {
		archive := file + ".tar"
		if _, err := os.Stat(archive); err != nil {
			if err := image.WriteArchive(archive, ref, file); err != nil {
				return Cache{}, err
			}
		}
		cache.Archives = append(cache.Archives, archive)
	}
	return cache, nil
}

func cacheFolder() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil { // root without HOME, as under some service managers
		base = "/root/.cache"
	}
	return filepath.Join(base, "hauberk", "cluster"), nil
}

type builder struct {
	ctx       context.Context // of one Ensure
	goTool    string
	goVersion string
	base      string
	report    *report.Reporter
}

// all builds the targets of the module in dir into a folder keyed by all that
// they depend on. A binary appears under its name only when it is whole.
func (b builder) all(name, dir string, targets []target) (string, error) {
	key, err := moduleKey(dir, b.goVersion, targets)
	if err != nil {
		return "", err
	}
	out := filepath.Join(b.base, name+"-"+key)
	var missing []target
	for _, t := range targets {
		if _, err := os.Stat(filepath.Join(out, t.name)); err != nil {
			missing = append(missing, t)
		}
	}
	if len(missing) == 0 {
		b.prune(name, out)
		return out, nil
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	if len(missing) > 3 {
		b.report.Say("building %s into %s: several minutes the first time, never again on this machine", name, out)
		if err := b.room(); err != nil {
			return "", err
		}
	}
	for i, t := range missing {
		what := fmt.Sprintf("build %s (%d of %d of %s)", t.name, i+1, len(missing), name)
		if err := b.report.During(what, func() error { return b.one(dir, out, t) }); err != nil {
			return "", err
		}
	}
	return out, nil
}

// prune marks the folder as used and removes its predecessors which nobody
// has used for a month. It is tidiness only: what fails is left for later.
func (b builder) prune(name, used string) {
	now := time.Now()
	_ = os.Chtimes(used, now, now)
	folders, _ := filepath.Glob(filepath.Join(b.base, name+"-*"))
	for _, folder := range folders {
		if info, err := os.Stat(folder); err == nil && folder != used && now.Sub(info.ModTime()) > 30*24*time.Hour {
			_ = os.RemoveAll(folder)
		}
	}
}

func (b builder) one(dir, out string, t target) error {
	part := filepath.Join(out, "."+t.name+".part")
	cmd := exec.CommandContext(b.ctx, b.goTool, "build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags", t.ldflags, "-o", part, t.pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if os.Getenv("HOME") == "" {
		cmd.Env = append(cmd.Env, "HOME=/root") // go keeps its caches there
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("build %s in %s: %w\n%s\nThe Go module proxy must be reachable for the first build (GOPROXY)", t.name, dir, err, tail(output.String(), 20))
	}
	f, err := os.Open(part)
	if err != nil {
		return err
	}
	err = f.Sync()
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", part, err)
	}
	return os.Rename(part, filepath.Join(out, t.name))
}

func (b builder) room() error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(b.base, &fs); err != nil {
		return fmt.Errorf("look at the file system of %s: %w", b.base, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < neededBytes {
		return fmt.Errorf("building Kubernetes needs about %d GB, but only %.1f GB are free at %s: make room there, or set XDG_CACHE_HOME and GOCACHE to a larger disk",
			neededBytes>>30, float64(free)/(1<<30), b.base)
	}
	return nil
}

// moduleKey names everything which the binaries of dir are made from, other
// than the modules which its go.sum names.
func moduleKey(dir, goVersion string, targets []target) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, goVersion, runtime.GOARCH, targets)
	for _, pattern := range []string{"go.mod", "go.sum", "*.go"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return "", err
		}
		for _, f := range files {
			content, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			fmt.Fprintln(h, filepath.Base(f), len(content))
			h.Write(content)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:6]), nil
}

// toolchain finds go, even where sudo has taken it out of the PATH.
func toolchain(ctx context.Context, source string) (path, version string, err error) {
	for _, candidate := range []string{"go", "/usr/local/go/bin/go", "/usr/lib/go/bin/go"} {
		if path, err = exec.LookPath(candidate); err == nil {
			break
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("the go command is not in PATH: install Go 1.26 or newer, or keep PATH through sudo (sudo env PATH=$PATH make cluster)")
	}
	cmd := exec.CommandContext(ctx, path, "env", "GOVERSION")
	cmd.Dir = source
	out, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("%s env GOVERSION: %w", path, err)
	}
	return path, strings.TrimSpace(string(out)), nil
}

// lock keeps two builds out of one cache. It ends with the process at latest.
func lock(path string, r *report.Reporter) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		r.Say("waiting for another build in %s", filepath.Dir(path))
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
	}
	return func() { f.Close() }, nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
