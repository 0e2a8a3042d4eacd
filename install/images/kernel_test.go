package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The tools of the node image work with nothing around them but the image:
// they run in a chroot of it, in a network namespace of their own.
func TestNetToolsRunInTheImage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("left out: running nft and iptables in a chroot of the node image needs root")
	}
	specs := []spec{{Name: "node", Title: "Node", User: "0:0", NetTools: true, Binaries: []binary{component("one")}}}
	b := fixtureBuilder(t, fixture(t), specs)
	results, _, err := b.build(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	unpack(t, load(t, results[0]), root)
	for _, doc := range []string{"nftables", "iptables", "libc6", "libnftables1", "libxtables12"} {
		if _, err := os.Stat(filepath.Join(root, "usr/share/doc", doc, "copyright")); err != nil {
			t.Errorf("no copyright file: %v", err)
		}
	}
	// A child of its own keeps the namespaces for all of these commands.
	holder := exec.CommandContext(t.Context(), "sleep", "300")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	inImage := func(stdin string, args ...string) string {
		t.Helper()
		enter := append([]string{"--net=/proc/" + strconv.Itoa(holder.Process.Pid) + "/ns/net", "--", "chroot", root}, args...)
		command := exec.CommandContext(t.Context(), "nsenter", enter...)
		command.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		command.Stdin = strings.NewReader(stdin)
		out, err := command.CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	for _, tool := range []string{"iptables", "ip6tables", "iptables-restore", "iptables-save"} {
		if said := inImage("", "/usr/sbin/"+tool, "--version"); !strings.Contains(said, "nf_tables") {
			t.Errorf("%s --version says %q, want nf_tables in it", tool, said)
		}
	}
	inImage("table inet hauberk {\n set peers { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }\n chain c { type filter hook forward priority 0; ip saddr @peers tcp dport 2379 counter accept; }\n}\n", "/usr/sbin/nft", "-f", "-")
	if said := inImage("", "/usr/sbin/nft", "-j", "list", "ruleset"); !strings.Contains(said, `"10.0.0.0"`) {
		t.Errorf("nft lists %q", said)
	}
	rules := "*nat\n:HAUBERK_OUTPUT - [0:0]\n-A OUTPUT -p tcp -j HAUBERK_OUTPUT\n-A HAUBERK_OUTPUT -m owner --uid-owner 15015 -j RETURN\n-A HAUBERK_OUTPUT -p tcp -m multiport --dports 22,53 -j RETURN\n-A HAUBERK_OUTPUT -p tcp -m comment --comment mesh -j REDIRECT --to-ports 15001\nCOMMIT\n"
	for _, family := range []string{"iptables", "ip6tables"} {
		inImage(rules, "/usr/sbin/"+family+"-restore", "--noflush", "-w", "5")
		if said := inImage("", "/usr/sbin/"+family+"-save", "-t", "nat"); !strings.Contains(said, "--to-ports 15001") {
			t.Errorf("%s-save says %q", family, said)
		}
	}
}

// containerd loads the archives under the names that manifests use.
func TestContainerdLoadsArchives(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("left out: starting containerd to load the archives needs root")
	}
	for _, tool := range []string{"containerd", "ctr"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("left out: loading the archives into containerd, for this machine has no %s (Debian package containerd)", tool)
		}
	}
	b := fixtureBuilder(t, fixture(t), fixtureSpecs())
	results, _, err := b.build(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	// Short, for a unix socket's path has at most 107 bytes.
	dir, err := os.MkdirTemp("/tmp", "hbk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "config.toml")
	text := "version = 2\nroot = \"" + dir + "/root\"\nstate = \"" + dir + "/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = \"" + dir + "/s\"\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	daemon := exec.CommandContext(context.WithoutCancel(t.Context()), "containerd", "--config", config)
	daemon.Stdout, daemon.Stderr = &log, &log
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Process.Signal(syscall.SIGTERM); _ = daemon.Wait() })
	ctr := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "ctr", append([]string{"--address", dir + "/s", "-n", "k8s.io"}, args...)...).CombinedOutput()
		return string(out), err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := ctr("version"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd did not answer within 20 s")
		}
	}
	for _, r := range []result{results[0], results[len(results)-1]} {
		if out, err := ctr("images", "import", r.Path); err != nil {
			t.Fatalf("import %s: %v\n%s", r.Path, err, out)
		}
	}
	listed, err := ctr("images", "ls")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results[:len(results)-1] {
		if !strings.Contains(listed, r.Name+" ") || !strings.Contains(listed, r.Digest) {
			t.Errorf("containerd does not list %s with %s:\n%s", r.Name, r.Digest, listed)
		}
	}
}
