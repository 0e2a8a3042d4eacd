package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// Two folders, two runs, one digest, and archives that are equal to the byte.
func TestReproducible(t *testing.T) {
	var archives [][]byte
	var digests []string
	for range 2 {
		b := fixtureBuilder(t, fixture(t), fixtureSpecs())
		results, _, err := b.build(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			raw, err := os.ReadFile(r.Path)
			if err != nil {
				t.Fatal(err)
			}
			archives, digests = append(archives, raw), append(digests, r.Digest)
		}
	}
	half := len(digests) / 2
	if diff := cmp.Diff(digests[:half], digests[half:]); diff != "" {
		t.Errorf("digests differ:\n%s", diff)
	}
	for i := range half {
		if !bytes.Equal(archives[i], archives[half+i]) {
			t.Errorf("archive %d differs between two folders", i)
		}
	}
}

func TestArchiveLoads(t *testing.T) {
	b := fixtureBuilder(t, fixture(t), fixtureSpecs())
	results, _, err := b.build(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	untar(t, results[len(results)-1].Path, dir)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Errorf("the combined archive is no valid OCI layout: %v", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for i, descriptor := range manifest.Manifests {
		found = append(found, descriptor.Annotations["io.containerd.image.name"], descriptor.Annotations["org.opencontainers.image.ref.name"])
		if got, want := descriptor.Digest.String(), results[i].Digest; got != want {
			t.Errorf("digest of %s in the combined archive is %s, want %s", results[i].Name, got, want)
		}
	}
	if diff := cmp.Diff([]string{"hauberk.dev/pair:v1.2.3", "hauberk.dev/pair:v1.2.3", "hauberk.dev/other:v1.2.3", "hauberk.dev/other:v1.2.3"}, found); diff != "" {
		t.Errorf("image names:\n%s", diff)
	}

	image := load(t, results[0])
	file, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want := v1.Config{
		User:       nonroot,
		Entrypoint: []string{"/usr/bin/one"},
		WorkingDir: "/",
		Labels: map[string]string{
			"org.opencontainers.image.title":       "Pair",
			"org.opencontainers.image.description": "Two commands.",
			"org.opencontainers.image.version":     "v1.2.3",
			"org.opencontainers.image.revision":    "abc",
			"org.opencontainers.image.licenses":    "Apache-2.0",
			"org.opencontainers.image.source":      "https://github.com/hauberk-mesh/hauberk",
			"org.opencontainers.image.created":     "2023-11-14T22:13:20Z",
		},
	}
	if diff := cmp.Diff(want, file.Config, cmpopts.IgnoreFields(v1.Config{}, "Env")); diff != "" {
		t.Errorf("configuration:\n%s", diff)
	}
	if file.OS != "linux" || file.Architecture != "amd64" || !file.Created.Equal(b.release.created) {
		t.Errorf("platform %s/%s, created %s", file.OS, file.Architecture, file.Created)
	}
	root := t.TempDir()
	unpack(t, image, root)
	for _, path := range []string{"etc/passwd", "etc/ssl/certs/ca-certificates.crt", "usr/share/doc/ca-certificates/copyright"} {
		if info, err := os.Stat(filepath.Join(root, path)); err != nil || info.Size() == 0 {
			t.Errorf("the image lacks %s: %v", path, err)
		}
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(root, "usr/bin/one")).CombinedOutput()
	if got := strings.TrimSpace(string(out)); err != nil || got != "one v1.2.3 abc" {
		t.Errorf("the binary of the image says %q, %v", got, err)
	}
}

// load reads an image back by Docker's part of the archive and validates it.
func load(t *testing.T, r result) v1.Image {
	t.Helper()
	tag, err := name.NewTag(r.Name)
	if err != nil {
		t.Fatal(err)
	}
	image, err := tarball.ImageFromPath(r.Path, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(image); err != nil {
		t.Fatalf("%s: %v", r.Path, err)
	}
	return image
}

func untar(t *testing.T, archive, into string) {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for files := tar.NewReader(file); ; {
		header, err := files.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(into, header.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// What has not changed is kept; what has, or was damaged, is written.
func TestOnlyChangesAreWritten(t *testing.T) {
	root := fixture(t)
	b := fixtureBuilder(t, root, fixtureSpecs())
	kept := func() map[string]bool {
		t.Helper()
		results, _, err := b.build(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, r := range results {
			found[r.Name] = r.Kept
		}
		return found
	}
	const pair, other, all = "hauberk.dev/pair:v1.2.3", "hauberk.dev/other:v1.2.3", "all of these"
	for _, step := range []struct {
		name   string
		change func() error
		want   map[string]bool
	}{
		{"first", func() error { return nil }, map[string]bool{pair: false, other: false, all: false}},
		{"again", func() error { return nil }, map[string]bool{pair: true, other: true, all: true}},
		{"source of one", func() error {
			return os.WriteFile(filepath.Join(root, "cmd/two/main.go"), []byte("package main\n\nfunc main() { println(\"three\") }\n"), 0o644)
		}, map[string]bool{pair: false, other: true, all: false}},
		{"source of the other module", func() error {
			return os.WriteFile(filepath.Join(root, "other/more.go"), []byte("package main\n\nfunc init() { println(\"more\") }\n"), 0o644)
		}, map[string]bool{pair: true, other: false, all: false}},
		{"archive gone", func() error { return os.Remove(b.path(b.specs[0])) }, map[string]bool{pair: false, other: true, all: true}},
		{"archive cut short", func() error { return os.Truncate(b.path(b.specs[1]), 100) }, map[string]bool{pair: true, other: false, all: true}},
		{"receipt is garbage", func() error { return os.WriteFile(receiptPath(b.path(b.specs[0])), []byte("{"), 0o644) }, map[string]bool{pair: false, other: true, all: true}},
		{"at the end", func() error { return nil }, map[string]bool{pair: true, other: true, all: true}},
	} {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(step.want, kept()); diff != "" {
			t.Errorf("%s: kept (-want +got):\n%s", step.name, diff)
		}
	}
}

func TestMissingAndBrokenSources(t *testing.T) {
	root := fixture(t)
	specs := []spec{
		{Name: "a", User: nonroot, Binaries: []binary{component("absent"), component("one")}},
		{Name: "b", User: nonroot, Binaries: []binary{component("empty")}},
	}
	_, _, err := fixtureBuilder(t, root, specs).build(t.Context(), false)
	for _, want := range []string{"image a needs the binary absent", filepath.Join(root, "cmd/empty")} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "cmd/one/main.go"), []byte("package main\n\nfunc main() { nonsense }\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, err = fixtureBuilder(t, root, fixtureSpecs()).build(t.Context(), false)
	if err == nil || !strings.Contains(err.Error(), "undefined: nonsense") {
		t.Errorf("error %v, want the compiler's own words", err)
	}
}

func TestPush(t *testing.T) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	target := strings.TrimPrefix(server.URL, "http://") + "/team/mesh/"
	b := fixtureBuilder(t, fixture(t), fixtureSpecs())
	if _, _, err := b.build(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	// An unchanged image is pushed as well, with the digest of its archive.
	built, images, err := b.build(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	pushed, err := push(t.Context(), images, target, true, b.step)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range pushed {
		reference, err := name.ParseReference(r.Name, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		image, err := remote.Image(reference, remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		if err := validate.Image(image); err != nil {
			t.Errorf("%s: %v", r.Name, err)
		}
		digest, err := image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if digest.String() != built[i].Digest || r.Digest != built[i].Digest || !built[i].Kept {
			t.Errorf("%s was pushed as %s, reported as %s, built as %+v", r.Name, digest, r.Digest, built[i])
		}
	}
	if got, want := pushed[0].Name, target+"pair:v1.2.3"; got != want {
		t.Errorf("pushed as %s, want %s", got, want)
	}
	if _, err := push(t.Context(), images, "no host here", false, b.step); err == nil || !strings.Contains(err.Error(), "-push wants") {
		t.Errorf("a bad target: %v", err)
	}
	server.Close()
	if _, err := push(t.Context(), images[:1], target, true, b.step); err == nil {
		t.Error("a push to a registry that is gone succeeded")
	}
}

func TestCommandLine(t *testing.T) {
	for _, test := range []struct {
		args string
		says string
	}{
		{"-version v1/2", "cannot be an image's tag"},
		{"-version .x", "cannot be an image's tag"},
		{"-arch sparc", "amd64 or arm64"},
		{"-insecure", "there is no -push"},
		{"-out=", "wants a folder"},
		{"surplus", `unexpected argument "surplus"`},
		{"-images nothing", "there are hauberk-control"},
		{"-wrong", "not defined"},
	} {
		err := command(t.Context(), strings.Fields(test.args), io.Discard, io.Discard)
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%q: %v, want a usage error with %q", test.args, err, test.says)
		}
	}
}

// The catalog's images are those that charts and manifests name.
func TestCatalog(t *testing.T) {
	var got []string
	for _, s := range catalog() {
		got = append(got, s.Name+" "+s.User)
	}
	want := []string{
		"hauberk-control 65532:65532", "hauberk-injector 65532:65532", "hauberk-proxy 15015:15015", "hauberk-node 0:0",
		"hauberk-cli 65532:65532", "yaobank 65532:65532", "otel-collector 65532:65532",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestTimestamp(t *testing.T) {
	committed := time.Unix(1_700_000_000, 0)
	for _, test := range []struct {
		epoch     string
		committed time.Time
		want      int64
	}{
		{"", time.Time{}, 0}, {"", committed, 1_700_000_000}, {"42", committed, 42}, {"0", time.Time{}, 0},
	} {
		got, err := timestamp(test.epoch, test.committed)
		if err != nil || got.Unix() != test.want {
			t.Errorf("timestamp(%q, %s) = %s, %v, want %d", test.epoch, test.committed, got, err, test.want)
		}
	}
	for _, epoch := range []string{"x", "-1", "1.5"} {
		if _, err := timestamp(epoch, committed); err == nil {
			t.Errorf("SOURCE_DATE_EPOCH=%q was accepted", epoch)
		}
	}
}

func TestCheckout(t *testing.T) {
	dir := t.TempDir()
	if revision, committed := checkout(t.Context(), dir); revision != "" || !committed.IsZero() {
		t.Errorf("a folder without git is at %q, %s", revision, committed)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "file"}, {"-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-q", "-m", "one", "--date=@1700000000"}} {
		command := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir}, args...)...)
		command.Env = append(os.Environ(), "GIT_COMMITTER_DATE=@1700000000 +0000")
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
	}
	clean, committed := checkout(t.Context(), dir)
	if len(clean) != 40 || committed.Unix() != 1_700_000_000 {
		t.Errorf("a clean checkout is at %q, %s", clean, committed)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("22"), 0o644); err != nil {
		t.Fatal(err)
	}
	if dirty, _ := checkout(t.Context(), dir); dirty != clean+"-dirty" {
		t.Errorf("a changed checkout is at %q, want %s-dirty", dirty, clean)
	}
}

func TestParseRecords(t *testing.T) {
	got := parseRecords([]byte(`Package: nftables
Version: 1.0.6-2+deb12u2
Depends: libc6 (>= 2.34), libedit2 (>= 2.11) | libedit, libnftables1:any (= 1.0.6-2+deb12u2)
Description-en: tools
 Depends: not a field

Package: libc6
Version: 2.36-9
Pre-Depends: libgcc-s1

Package: nothing
`))
	want := map[string]pkg{
		"nftables": {Name: "nftables", Version: "1.0.6-2+deb12u2", depends: []string{"libc6", "libedit2", "libnftables1"}},
		"libc6":    {Name: "libc6", Version: "2.36-9", depends: []string{"libgcc-s1"}},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(pkg{})); diff != "" {
		t.Error(diff)
	}
}

func TestRootfsRefusesOddPaths(t *testing.T) {
	for _, path := range []string{"/etc/passwd", "../etc/passwd", "..", "etc/..", "etc//passwd"} {
		content := rootfs{path: {content: []byte("x"), mode: 0o644}}
		if _, err := content.tarball(time.Unix(0, 0)); err == nil {
			t.Errorf("a layer with %q was written", path)
		}
	}
}

func TestReport(t *testing.T) {
	var out bytes.Buffer
	if err := report(&out, []result{{Name: "a", Path: "/a.tar", Digest: "sha256:1"}, {Name: "b", Path: "/b.tar", Kept: true}, {Name: "c", Digest: "sha256:2"}}); err != nil {
		t.Fatal(err)
	}
	want := "a  written    /a.tar  sha256:1\nb  unchanged  /b.tar  \nc  pushed             sha256:2\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
