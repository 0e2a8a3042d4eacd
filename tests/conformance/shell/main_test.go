package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want []string // nil is an error
	}{
		"words":     {[]string{"-c", "/agnhost  serve-hostname --tcp --port 80"}, []string{"/agnhost", "serve-hostname", "--tcp", "--port", "80"}},
		"no option": {[]string{"/agnhost"}, nil},
		"empty":     {[]string{"-c", " "}, nil},
		"variable":  {[]string{"-c", "echo $HOME"}, nil},
		"pipe":      {[]string{"-c", "a | b"}, nil},
		"nothing":   {nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parse(test.args)
			if (err != nil) != (test.want == nil) {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
