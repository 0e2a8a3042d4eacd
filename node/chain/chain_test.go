package chain

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ptpList = `{
  "name": "pods", "cniVersion": "1.0.0",
  "unknown": {"keep": 1.50, "z": 0, "a": [1,2 , 3]},
  "plugins": [
    {"type": "ptp", "ipMasq": true, "mtu": 1e3},
    { "type": "portmap" , "capabilities": {"portMappings": true} }
  ],
  "disableCheck": false
}
`
	ptpListChained = `{
  "name": "pods", "cniVersion": "1.0.0",
  "unknown": {"keep": 1.50, "z": 0, "a": [1,2 , 3]},
  "plugins": [
    {"type": "ptp", "ipMasq": true, "mtu": 1e3},
    { "type": "portmap" , "capabilities": {"portMappings": true} },
    {"type":"hauberk-cni"}
  ],
  "disableCheck": false
}
`
	ptpConf = `{"cniVersion":"1.0.0", "name":"pods", "type":"ptp", "x": 1.0}` + "\n"
)

func newManager(t *testing.T, files map[string]string) *Manager {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/source", []byte("#!plugin"), 0o755); err != nil {
		t.Fatal(err)
	}
	m, err := New(Options{
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), ConfDir: dir + "/net.d", BinDir: dir + "/bin", Source: dir + "/source",
		Socket: "/run/hauberk/cni.sock", Interval: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, m, files)
	return m
}

func put(t *testing.T, m *Manager, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(m.ConfDir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func contents(t *testing.T, m *Manager) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(m.ConfDir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(m.ConfDir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[e.Name()] = string(data)
	}
	return files
}

func TestEnsureAndRemove(t *testing.T) {
	converted := "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    " + strings.TrimSpace(ptpConf) + ",\n    {\"type\":\"hauberk-cni\"}\n  ]\n}\n"
	for _, c := range []struct {
		name           string
		before, during map[string]string
		// after is what Remove leaves; before when nil.
		after map[string]string
		// problem is part of the error of Ensure.
		problem string
	}{
		{
			name:   "a list",
			before: map[string]string{"10-ptp.conflist": ptpList},
			during: map[string]string{"10-ptp.conflist": ptpListChained},
		},
		{
			name:   "in one line",
			before: map[string]string{"a.conflist": `{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"bridge"}]}`},
			during: map[string]string{"a.conflist": `{"cniVersion":"0.4.0","name":"n","plugins":[{"type":"bridge"},{"type":"hauberk-cni"}]}`},
		},
		{
			name:   "a single configuration",
			before: map[string]string{"10-ptp.conf": ptpConf, "99-loopback.conf": `{"type":"loopback"}`},
			during: map[string]string{"10-ptp-hauberk.conflist": converted, "10-ptp.conf.hauberk": ptpConf, "99-loopback.conf": `{"type":"loopback"}`},
		},
		{
			name:   "a single configuration with a list of the same name",
			before: map[string]string{"10-ptp.conf": ptpConf, "10-ptp.conflist": ptpList},
			during: map[string]string{"10-ptp-hauberk.conflist": converted, "10-ptp.conf.hauberk": ptpConf, "10-ptp.conflist": ptpList},
		},
		{
			name:   "a single configuration without a version",
			before: map[string]string{"x.json": `{"name":"n","type":"ptp"}`},
			during: map[string]string{"x-hauberk.conflist": "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"n\",\n  \"plugins\": [\n    {\"name\":\"n\",\"type\":\"ptp\"},\n    {\"type\":\"hauberk-cni\"}\n  ]\n}\n", "x.json.hauberk": `{"name":"n","type":"ptp"}`},
		},
		{
			name:   "the first valid file",
			before: map[string]string{"05-broken.conflist": `{"plugins": [`, "06-empty.conf": `{}`, "07-note.txt": "hello", "10-ptp.conflist": ptpList, "20-other.conflist": ptpList},
			during: map[string]string{"05-broken.conflist": `{"plugins": [`, "06-empty.conf": `{}`, "07-note.txt": "hello", "10-ptp.conflist": ptpListChained, "20-other.conflist": ptpList},
		},
		{
			name:   "our entry is there with another socket and twice",
			before: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}, {"type":"hauberk-cni","socket":"/old"}, {"type":"tuning"}, {"type":"hauberk-cni"}]}`},
			during: map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}, {"type":"hauberk-cni"}, {"type":"tuning"}]}`},
			after:  map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}, {"type":"tuning"}]}`},
		},
		{
			name:    "an entry in a list that is not active is taken out, too",
			before:  map[string]string{"10.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}`, "20.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"hauberk-cni"},{"type":"ptp"}]}`},
			during:  map[string]string{"10.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"},{"type":"hauberk-cni"}]}`, "20.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"hauberk-cni"},{"type":"ptp"}]}`},
			after:   map[string]string{"10.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}`, "20.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}`},
			problem: "",
		},
		{
			name:    "nothing",
			before:  map[string]string{},
			during:  map[string]string{},
			problem: "is the primary CNI plugin installed?",
		},
		{
			name:    "only broken files",
			before:  map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]} trailing`, "b.conf": "\x00"},
			during:  map[string]string{"a.conflist": `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]} trailing`, "b.conf": "\x00"},
			problem: "something follows",
		},
		{
			name:    "a list of an old version",
			before:  map[string]string{"a.conflist": `{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"ptp"}]}`},
			during:  map[string]string{"a.conflist": `{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"ptp"}]}`},
			problem: "set cniVersion",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newManager(t, c.before)
			for range 2 { // the second changes nothing
				err := m.Ensure()
				if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
					t.Fatalf("got %v, want %q", err, c.problem)
				}
				if diff := cmp.Diff(c.during, contents(t, m)); diff != "" {
					t.Errorf("after Ensure (-want +got):\n%s", diff)
				}
			}
			if data, err := os.ReadFile(m.BinDir + "/hauberk-cni"); err != nil || string(data) != "#!plugin" {
				t.Errorf("plugin: %q, %v", data, err)
			}
			if c.problem == "" {
				if s := m.State(); !s.Present || s.Repairs != 0 || s.Problem != "" {
					t.Errorf("state %+v", s)
				}
				if _, err := libcni.ConfListFromFile(m.State().File); err != nil {
					t.Errorf("libcni does not take %s: %v", m.State().File, err)
				}
			}
			after := c.after
			if after == nil {
				after = c.before
			}
			for range 2 {
				if err := m.Remove(); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(after, contents(t, m)); diff != "" {
					t.Errorf("after Remove (-want +got):\n%s", diff)
				}
			}
			if _, err := os.Stat(m.BinDir + "/hauberk-cni"); !os.IsNotExist(err) {
				t.Errorf("the plugin is still there: %v", err)
			}
		})
	}
}

func TestConvertedStaysOthersEntries(t *testing.T) {
	m := newManager(t, map[string]string{"10-ptp.conf": ptpConf})
	if err := m.Ensure(); err != nil {
		t.Fatal(err)
	}
	// Somebody chains a plugin of theirs, then the primary rewrites its file.
	text := contents(t, m)["10-ptp-hauberk.conflist"]
	text = strings.Replace(text, `{"type":"hauberk-cni"}`, `{"type":"hauberk-cni"}, {"type":"tuning", "mine": 1.0}`, 1)
	put(t, m, map[string]string{"10-ptp-hauberk.conflist": text, "10-ptp.conf": `{"cniVersion":"1.0.0","name":"pods","type":"ptp","x":2}`})
	if err := m.Ensure(); err != nil {
		t.Fatal(err)
	}
	got := contents(t, m)
	list := got["10-ptp-hauberk.conflist"]
	for _, want := range []string{`"x":2`, `{"type":"hauberk-cni"}, {"type":"tuning", "mine": 1.0}`} {
		if !strings.Contains(list, want) {
			t.Errorf("%s is not in %s", want, list)
		}
	}
	if _, ok := got["10-ptp.conf"]; ok || m.State().Repairs != 1 {
		t.Errorf("the rewritten file was not taken in: %v, %+v", got, m.State())
	}
	if err := m.Remove(); err != nil {
		t.Fatal(err)
	}
	got = contents(t, m)
	if list := got["10-ptp-hauberk.conflist"]; !strings.Contains(list, `{"type":"tuning", "mine": 1.0}`) || strings.Contains(list, `hauberk-cni"`) {
		t.Errorf("after Remove: %v", got)
	}
}

func TestSymbolicLink(t *testing.T) {
	m := newManager(t, map[string]string{"real": ptpList})
	if err := os.Symlink("real", m.ConfDir+"/10.conflist"); err != nil {
		t.Fatal(err)
	}
	if err := m.Ensure(); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(m.ConfDir + "/10.conflist"); err != nil || string(data) != ptpListChained {
		t.Errorf("%s, %v", data, err)
	}
	if info, err := os.Lstat(m.ConfDir + "/10.conflist"); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link was replaced: %v, %v", info, err)
	}
}

// eventually polls, because events come when they come.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestWatchRepairs(t *testing.T) {
	m := newManager(t, nil)
	m.Interval = time.Hour // events alone
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, nil) }()
	file := m.ConfDir + "/10-ptp.conflist"
	chained := func() bool {
		data, err := os.ReadFile(file)
		return err == nil && string(data) == ptpListChained
	}
	eventually(t, "the problem is known", func() bool { return strings.Contains(m.State().Problem, "no valid network configuration") })
	put(t, m, map[string]string{"10-ptp.conflist": ptpList})
	eventually(t, "inserted when the primary comes", chained)
	for i := range 3 {
		// In place, and by rename, as tools do.
		if i%2 == 0 {
			put(t, m, map[string]string{"10-ptp.conflist": ptpList})
		} else {
			put(t, m, map[string]string{"new": ptpList})
			if err := os.Rename(m.ConfDir+"/new", file); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "repaired", func() bool { return chained() && m.State().Repairs == i+1 })
	}
	if err := os.Remove(m.BinDir + "/hauberk-cni"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the plugin is back", func() bool { _, err := os.Stat(m.BinDir + "/hauberk-cni"); return err == nil })
	put(t, m, map[string]string{"05-new.conflist": ptpList})
	eventually(t, "a new active list has the entry", func() bool {
		data, _ := os.ReadFile(m.ConfDir + "/05-new.conflist")
		return string(data) == ptpListChained
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !chained() {
		t.Error("the entry went with the agent")
	}
	for name := range contents(t, m) {
		if strings.HasPrefix(name, temporary) {
			t.Errorf("%s was left behind", name)
		}
	}
}

func TestReplaceKeepsOthersWrites(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/a.conflist"
	if err := os.WriteFile(path, []byte("theirs"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := replace(path, []byte("what we had read"), []byte("ours")); err == nil || !strings.Contains(err.Error(), "changed by somebody else") {
		t.Errorf("got %v", err)
	}
	if data, _ := os.ReadFile(path); string(data) != "theirs" {
		t.Errorf("their write was lost: %q", data)
	}
	if err := replace(path, []byte("theirs"), []byte("ours")); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", info, err)
	}
	if err := replace(dir+"/none", nil, nil); err == nil {
		t.Error("replaced what is not there")
	}
}

func FuzzInsertRemove(f *testing.F) {
	for _, seed := range []string{ptpList, ptpListChained, ptpConf, `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}]}`, `{"plugins":[{"type":"hauberk-cni"}]}`, `[]`} {
		f.Add([]byte(seed))
	}
	entry := []byte(`{"type":"hauberk-cni"}`)
	f.Fuzz(func(t *testing.T, text []byte) {
		before, err := parseList(text)
		if err != nil {
			return
		}
		with, err := insert(text, entry)
		if err != nil {
			return
		}
		if !json.Valid(with) {
			t.Fatalf("not JSON: %q", with)
		}
		l, err := parseList(with)
		if err != nil || len(l.ours) != 1 {
			t.Fatalf("%q has %d entries of ours, %v", with, len(l.ours), err)
		}
		without, err := remove(with)
		if err != nil || !json.Valid(without) {
			t.Fatalf("%q: %v", without, err)
		}
		if len(before.ours) == 0 && string(without) != string(text) {
			t.Fatalf("insert and remove made %q of %q", without, text)
		}
	})
}
