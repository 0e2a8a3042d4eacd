package run

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Progress tells of long steps on a terminal, on one line that is rewritten,
// with the elapsed time. In a pipe it is silent.
type Progress struct {
	w     io.Writer
	start time.Time

	mu   sync.Mutex
	text string
	stop chan struct{}
	done chan struct{}
}

// NewProgress starts telling on w, if it is a terminal. End it with Close.
func NewProgress(w io.Writer) *Progress {
	p := &Progress{start: time.Now()}
	if !IsTerminal(w) {
		return p
	}
	p.w, p.stop, p.done = w, make(chan struct{}), make(chan struct{})
	go p.tick()
	return p
}

func (p *Progress) tick() {
	defer close(p.done)
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-p.stop:
			fmt.Fprint(p.w, "\r\x1b[K")
			return
		case <-t.C:
			p.draw()
		}
	}
}

func (p *Progress) draw() {
	p.mu.Lock()
	text := p.text
	p.mu.Unlock()
	if text != "" {
		fmt.Fprintf(p.w, "\r\x1b[K%4.0fs  %s", time.Since(p.start).Seconds(), text)
	}
}

// Step says what is being done now.
func (p *Progress) Step(format string, args ...any) {
	p.mu.Lock()
	p.text = fmt.Sprintf(format, args...)
	p.mu.Unlock()
	if p.w != nil {
		p.draw()
	}
}

// Close clears the line.
func (p *Progress) Close() {
	if p.stop == nil {
		return
	}
	close(p.stop)
	<-p.done
	p.stop = nil
}

// Started is when the progress began.
func (p *Progress) Started() time.Time { return p.start }
